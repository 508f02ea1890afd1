//! Which manifests and indexes of an image are still to be read (pure).
//!
//! An index is the image's own word: it may name one manifest a thousand times, or itself.

use std::collections::HashSet;

/// So many manifests and indexes of one image are read: those for one architecture are a handful.
pub const MOST_MANIFESTS: usize = 32;

/// Indexes in indexes are followed so deep.
const MOST_INDEXES: usize = 3;

/// An image names more than [`MOST_MANIFESTS`].
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany;

/// The digests to read, each once, the likeliest first.
pub struct Waiting {
    seen: HashSet<String>,
    /// With how many indexes lead to it; the next one last.
    left: Vec<(String, usize)>,
}

impl Waiting {
    /// Begins with the digest that the image's name means.
    pub fn new(target: &str) -> Waiting {
        Waiting {
            seen: HashSet::from([target.to_owned()]),
            left: vec![(target.to_owned(), 0)],
        }
    }

    /// The next digest, and how many indexes lead to it.
    pub fn next(&mut self) -> Option<(String, usize)> {
        self.left.pop()
    }

    /// Puts what the index at `depth` names before all that waits, in its order; what was named before is not read
    /// again, and too deep ones are not read at all.
    pub fn add(&mut self, named: impl IntoIterator<Item = String>, depth: usize) -> Result<(), TooMany> {
        if depth >= MOST_INDEXES {
            return Ok(());
        }
        let mut new = Vec::new();
        for digest in named {
            if !self.seen.insert(digest.clone()) {
                continue;
            }
            if self.seen.len() > MOST_MANIFESTS {
                return Err(TooMany);
            }
            new.push((digest, depth + 1));
        }
        self.left.extend(new.into_iter().rev());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(waiting: &mut Waiting) -> Vec<String> {
        std::iter::from_fn(|| waiting.next())
            .map(|(digest, _)| digest)
            .collect()
    }

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_manifest_that_an_index_names_often_is_read_once() {
        let mut waiting = Waiting::new("index");
        assert_eq!(waiting.next(), Some(("index".to_owned(), 0)));
        assert_eq!(waiting.add(vec!["same".to_owned(); 20_000], 0), Ok(()));
        assert_eq!(waiting.add(named(&["index", "same"]), 1), Ok(()), "nor in a circle");
        assert_eq!(read(&mut waiting), ["same"]);
    }

    #[test]
    fn manifests_come_in_their_indexes_order_and_nested_ones_first() {
        let mut waiting = Waiting::new("index");
        waiting.next();
        waiting.add(named(&["a", "b"]), 0).expect("few");
        assert_eq!(waiting.next(), Some(("a".to_owned(), 1)));
        waiting.add(named(&["c", "d"]), 1).expect("few");
        assert_eq!(read(&mut waiting), ["c", "d", "b"]);
    }

    #[test]
    fn an_image_of_too_many_manifests_is_refused_and_deep_ones_are_not_followed() {
        let numbers = |count: usize| (1..=count).map(|number| number.to_string());
        assert_eq!(Waiting::new("0").add(numbers(MOST_MANIFESTS - 1), 0), Ok(()));
        assert_eq!(Waiting::new("0").add(numbers(MOST_MANIFESTS), 0), Err(TooMany));
        let mut waiting = Waiting::new("0");
        waiting.next();
        assert_eq!(waiting.add(numbers(20_000), MOST_INDEXES), Ok(()));
        assert_eq!(waiting.next(), None);
    }
}
