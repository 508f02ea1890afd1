//! What the shim names the files in its cache, so that whoever removes a cache removes nothing else.

/// Whether a file of this name in `cache_dir` is the shim's own: an artifact, its index, the digests of files that were
/// read, or one of these that is being written.
pub fn is_cache_file(name: &str) -> bool {
    let stem = name.strip_suffix(".cwasm").or_else(|| name.strip_suffix(".json"));
    let is_key = |stem: &str| stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    stem.is_some_and(is_key) || name.starts_with(".tmp-") || name.starts_with("digests.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_somebody_elses_is_none_of_the_cache() {
        let key = "0".repeat(64);
        assert!(is_cache_file(&format!("{key}.cwasm")) && is_cache_file(&format!("{key}.json")));
        for other in ["data.json", "a.cwasm", "0.json", "digests.toml", ".bashrc", &key, ""] {
            assert!(!is_cache_file(other), "{other}");
        }
    }
}
