//! Digests remembered between commands: hashing some gigabytes of weights once is enough while they stay untouched.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{hex, sha256};
use crate::{WeightError, atomic};

/// A file that changed this recently may change again within one tick of the file system's clock, unseen.
const TOO_FRESH: Duration = Duration::from_secs(2);

/// A directory with one small file for each digest. That it cannot be read or written is never an error.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: Option<PathBuf>,
}

/// What tells that a file is the one that was hashed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    path: PathBuf,
    size: u64,
    /// Time of the last change of the content, since 1970.
    modified: Duration,
    /// Device, inode and time of the last change of either content or metadata, where there are such: a program can set
    /// `modified` back, but not these.
    identity: Option<(u64, u64, i64, i64)>,
}

/// The directory `qwen-tune/NAME` below `$XDG_CACHE_HOME` or what the system has instead, for what can be made again;
/// `None` where there is no home.
pub fn user_cache(name: &str) -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = |below: &str| var("HOME").map(|home| home.join(below));
    let base = var("XDG_CACHE_HOME").or_else(|| {
        if cfg!(windows) {
            var("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            home("Library/Caches")
        } else {
            home(".cache")
        }
    });
    base.map(|base| base.join("qwen-tune").join(name))
}

#[derive(Serialize, Deserialize)]
struct Entry {
    stamp: Stamp,
    sha256: String,
}

impl Cache {
    /// The user's: [`user_cache`] of `sha256`.
    pub fn user() -> Self {
        Self { directory: user_cache("sha256") }
    }

    /// In this directory.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: Some(directory.into()) }
    }

    /// One that remembers nothing.
    pub fn none() -> Self {
        Self { directory: None }
    }

    /// The SHA-256 of a file, from memory if the file has not changed since.
    pub fn digest(&self, path: &Path) -> Result<String, WeightError> {
        let before = Stamp::of(path);
        if let Some(known) = self.recall(before.as_ref()) {
            return Ok(known);
        }
        let sha256 = sha256(path)?;
        if let Some(stamp) = before.filter(Stamp::is_settled)
            && let Some(place) = self.place(&stamp)
            && Stamp::of(path).as_ref() == Some(&stamp)
        {
            write(&place, &Entry { stamp, sha256: sha256.clone() });
        }
        Ok(sha256)
    }

    /// Bytes of a file that [`Cache::digest`] would have to read.
    pub fn bytes_to_read(&self, path: &Path) -> u64 {
        let stamp = Stamp::of(path);
        if self.recall(stamp.as_ref()).is_some() { 0 } else { stamp.map_or(0, |stamp| stamp.size) }
    }

    fn recall(&self, stamp: Option<&Stamp>) -> Option<String> {
        let stamp = stamp?;
        let entry = read(&self.place(stamp)?)?;
        (entry.stamp == *stamp).then_some(entry.sha256)
    }

    fn place(&self, stamp: &Stamp) -> Option<PathBuf> {
        let name = hex(&Sha256::digest(stamp.path.as_os_str().as_encoded_bytes()));
        Some(self.directory.as_ref()?.join(format!("{}.json", &name[..32])))
    }
}

fn read(place: &Path) -> Option<Entry> {
    serde_json::from_slice(&fs::read(place).ok()?).ok()
}

/// Best effort: what is not remembered is hashed again.
fn write(place: &Path, entry: &Entry) {
    let Ok(text) = serde_json::to_vec(entry) else { return };
    let Some(directory) = place.parent() else { return };
    let _ = fs::create_dir_all(directory);
    let _ = atomic::write_file(place, |file| file.write_all(&text).map_err(WeightError::io("write", place)));
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let path = fs::canonicalize(path).ok()?;
        let metadata = fs::metadata(&path).ok()?;
        let modified = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(Self { path, size: metadata.len(), modified, identity: identity(&metadata) })
    }

    fn is_settled(&self) -> bool {
        let changed = self.identity.map_or(0, |(_, _, seconds, _)| u64::try_from(seconds).unwrap_or(0));
        let last = self.modified.max(Duration::from_secs(changed));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        last + TOO_FRESH <= now
    }
}

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "other systems have none")]
fn identity(metadata: &fs::Metadata) -> Option<(u64, u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    Some((metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

#[cfg(not(unix))]
fn identity(_: &fs::Metadata) -> Option<(u64, u64, i64, i64)> {
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A file whose last change was long ago, as far as a program can set that.
    fn old_file(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
    }

    #[test]
    fn a_digest_is_remembered_only_while_the_file_is_the_same() {
        let home = tempfile::tempdir().unwrap();
        let (cache, path) = (Cache::at(home.path().join("cache")), home.path().join("weights"));
        old_file(&path, "one");
        let stamp = Stamp::of(&path).unwrap();
        let place = cache.place(&stamp).unwrap();
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        write(&place, &Entry { stamp, sha256: "remembered".to_owned() });
        assert_eq!((cache.digest(&path).unwrap().as_str(), cache.bytes_to_read(&path)), ("remembered", 0));
        // Same length, same time of change.
        old_file(&path, "two");
        assert_eq!(cache.bytes_to_read(&path), 3);
        assert_eq!(cache.digest(&path).unwrap(), sha256(&path).unwrap());
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_remembered() {
        let home = tempfile::tempdir().unwrap();
        let (cache, path) = (Cache::at(home.path().join("cache")), home.path().join("weights"));
        fs::write(&path, "one").unwrap();
        cache.digest(&path).unwrap();
        assert!(!home.path().join("cache").exists());
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_error() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("weights");
        old_file(&path, "one");
        fs::write(home.path().join("file"), "").unwrap();
        let cache = Cache::at(home.path().join("file").join("below"));
        assert_eq!(cache.digest(&path).unwrap(), sha256(&path).unwrap());
    }
}
