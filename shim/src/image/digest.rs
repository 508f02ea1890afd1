//! Sha256 digests: how wasm binaries, layers and artifacts are named.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A sha256 digest, shown as `sha256:<hex>` (OCI image spec, descriptor digests).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

/// A text that is not `sha256:` and 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a sha256 digest (sha256: and 64 hex digits)")]
pub struct NotADigest(String);

/// How much is read at once when a file is hashed.
const CHUNK: usize = 256 << 10;

impl Digest {
    /// The digest of `bytes`.
    #[cfg(test)]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest of the whole of `file` and its length in bytes; the file's offset is neither used nor moved. `each`
    /// sees every piece in order.
    pub fn of_file(file: &File, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(Digest, u64)> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut offset = 0;
        loop {
            let count = match file.read_at(&mut buffer, offset) {
                Ok(0) => return Ok((Digest(hasher.finalize().into()), offset)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(&buffer[..count]);
            each(&buffer[..count])?;
            offset += count as u64;
        }
    }

    /// The 64 hex digits alone.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Digest, NotADigest> {
        let bad = || NotADigest(text.to_owned());
        let hex = text.strip_prefix("sha256:").ok_or_else(bad)?.as_bytes();
        if hex.len() != 64 {
            return Err(bad());
        }
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(bad()),
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Digest(bytes))
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_back_from_what_it_is_shown_as() {
        let digest = Digest::of(b"wasm");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.to_string(), format!("sha256:{}", digest.hex()));
    }

    #[test]
    fn other_algorithms_upper_case_and_wrong_lengths_are_refused() {
        let hex = "0".repeat(64);
        for text in [
            format!("sha512:{hex}"),
            hex.clone(),
            format!("sha256:{hex}0"),
            format!("sha256:{}A", &hex[1..]),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(NotADigest(text.clone())));
        }
    }

    #[test]
    fn a_file_longer_than_one_chunk_hashes_like_its_bytes() {
        let bytes: Vec<u8> = (0..CHUNK * 2 + 17).map(|i| i as u8).collect();
        let path = tempfile::NamedTempFile::new().expect("temp file");
        std::fs::write(path.path(), &bytes).expect("write");
        let file = File::open(path.path()).expect("open");
        let mut seen = Vec::new();
        let hashed = Digest::of_file(&file, |piece| {
            seen.extend_from_slice(piece);
            Ok(())
        });
        assert_eq!(hashed.expect("hash"), (Digest::of(&bytes), bytes.len() as u64));
        assert_eq!(seen, bytes);
    }
}
