//! What files were: their SHA-256, so that a later command can tell whether they still are.

mod cache;

use std::{collections::BTreeMap, fs::File, io::Read, path::Path, path::PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use cache::{Cache, user_cache};

use crate::WeightError;

const ALGORITHM: &str = "sha256";

/// Digests of a set of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// `sha256`.
    pub algorithm: String,
    /// One digest of all: that of [`Lock::sums`].
    pub digest: String,
    /// Each file's digest, by its name.
    pub files: BTreeMap<String, String>,
}

/// A file that is not what a lock says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its name in the locks.
    pub file: String,
    /// The digest it should have; none if it should not be there.
    pub expected: Option<String>,
    /// The digest it has; none if it is not there.
    pub found: Option<String>,
}

impl Lock {
    /// Hashes files, several at a time, unless `cache` knows them.
    pub fn of(files: impl IntoIterator<Item = (String, PathBuf)>, cache: &Cache) -> Result<Self, WeightError> {
        let files: Vec<(String, PathBuf)> = files.into_iter().collect();
        let hashed = files.into_par_iter().map(|(name, path)| cache.digest(&path).map(|digest| (name, digest)));
        Ok(Self::from_digests(hashed.collect::<Result<_, _>>()?))
    }

    fn from_digests(files: BTreeMap<String, String>) -> Self {
        let mut lock = Self { algorithm: ALGORITHM.to_owned(), digest: String::new(), files };
        lock.digest = hex(&Sha256::digest(lock.sums()));
        lock
    }

    /// The text that `sha256sum` prints for the files, sorted by name; `sha256sum --check` reads it.
    pub fn sums(&self) -> String {
        self.files.iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect()
    }

    /// Reads [`Lock::sums`]; `None` if a line is no digest and name.
    pub fn from_sums(text: &str) -> Option<Self> {
        let entry = |line: &str| {
            let (digest, name) = line.split_once("  ")?;
            let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
            is_digest.then(|| (name.to_owned(), digest.to_owned()))
        };
        text.lines().map(entry).collect::<Option<_>>().map(Self::from_digests)
    }

    /// What `now` has otherwise than this.
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let mut names: Vec<&String> = self.files.keys().chain(now.files.keys()).collect();
        names.sort();
        names.dedup();
        names
            .into_iter()
            .map(|name| Difference {
                file: name.clone(),
                expected: self.files.get(name).cloned(),
                found: now.files.get(name).cloned(),
            })
            .filter(|difference| difference.expected != difference.found)
            .collect()
    }
}

/// The SHA-256 of a file's content as 64 lower-case hexadecimal digits, read in pieces.
pub fn sha256(path: &Path) -> Result<String, WeightError> {
    let mut file = File::open(path).map_err(WeightError::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = file.read(&mut buffer).map_err(WeightError::io("read", path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn known_digests_come_out() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(sha256(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        std::fs::write(&path, "").unwrap();
        assert_eq!(sha256(&path).unwrap(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = sha256(Path::new("/nonexistent/f")).unwrap_err();
        assert!(error.to_string().starts_with("cannot open `/nonexistent/f`: "));
    }

    #[test]
    fn a_lock_names_what_changed_went_and_came() {
        let home = tempfile::tempdir().unwrap();
        let lock = |files: &[(&str, &str)]| {
            let write = |(name, text): &(&str, &str)| {
                let path = home.path().join(name);
                std::fs::write(&path, text).unwrap();
                ((*name).to_owned(), path)
            };
            Lock::of(files.iter().map(write), &Cache::none()).unwrap()
        };
        let before = lock(&[("same", "s"), ("changed", "a"), ("gone", "g")]);
        let now = lock(&[("same", "s"), ("changed", "b"), ("new", "n")]);
        let seen: Vec<_> = before.differences(&now);
        let names: Vec<&str> = seen.iter().map(|d| d.file.as_str()).collect();
        assert_eq!(names, ["changed", "gone", "new"]);
        assert!(seen[0].expected.is_some() && seen[0].found.is_some());
        assert!(seen[1].found.is_none() && seen[2].expected.is_none());
        assert_ne!(before.digest, now.digest);
        assert_eq!(before.differences(&before), []);
    }

    #[test]
    fn sums_are_read_as_they_were_written() {
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let lock = Lock::from_sums(&format!("{digest}  a b\n")).unwrap();
        assert_eq!(lock.sums(), format!("{digest}  a b\n"));
        assert_eq!(lock.files["a b"], digest);
        for broken in ["abc  x\n", "no sums at all\n", &format!("{}z  x\n", &digest[1..])] {
            assert_eq!(Lock::from_sums(broken), None, "{broken}");
        }
    }
}
