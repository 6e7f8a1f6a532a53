//! Files and directories that appear under their final name only when they are whole.
//!
//! Content goes to a hidden sibling (`.NAME.partial-…`), is synced to the device, and is then renamed; a rename inside
//! one directory is atomic. The sibling is removed when it is dropped before that. A killed process leaves its sibling
//! behind, never a half-written result; [`sweep`] removes what such processes left.

mod sibling;

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

pub use sibling::sweep;
use sibling::{in_use, unused};

use crate::WeightError;

/// Writes a file through `fill`, replacing one of that name. On failure the old file, if any, is as it was.
///
/// The error type is the caller's, so that `fill` can fail in its own way.
pub fn write_file<E: From<WeightError>>(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E> {
    let mut partial = PartialFile::create(path)?;
    fill(&mut partial.file)?;
    partial.commit()?;
    Ok(())
}

/// A file being written under a temporary name; removed when dropped before [`PartialFile::commit`].
#[derive(Debug)]
pub struct PartialFile {
    /// Where the content goes.
    pub file: File,
    guard: Guard,
    target: PathBuf,
}

impl PartialFile {
    /// Opens a temporary sibling of `target`, whose directory must exist.
    pub fn create(target: &Path) -> Result<Self, WeightError> {
        let (path, file) = unused(target, |path| OpenOptions::new().write(true).create_new(true).open(path))?;
        // The lock is the sign that the sibling is being written; it ends with the file's handle.
        let _ = file.try_lock();
        Ok(Self { file, guard: Guard { path, committed: false, _in_use: None }, target: target.to_owned() })
    }

    /// Syncs the content and gives the file its final name, replacing one of that name.
    pub fn commit(mut self) -> Result<(), WeightError> {
        self.file.sync_all().map_err(WeightError::io("sync", &self.guard.path))?;
        fs::rename(&self.guard.path, &self.target).map_err(WeightError::io("create", &self.target))?;
        self.guard.committed = true;
        sync_directory(parent_of(&self.target))
    }
}

/// A directory being filled under a temporary name; removed when dropped before [`AtomicDir::commit`].
#[derive(Debug)]
pub struct AtomicDir {
    guard: Guard,
    target: PathBuf,
    replace: bool,
}

impl AtomicDir {
    /// A new directory. Something at `target` already, other than an empty directory, is an error, now and when
    /// committing. Missing parent directories are created.
    pub fn new(target: &Path) -> Result<Self, WeightError> {
        Self::open(target, false)
    }

    /// A directory that takes the place of one that may be there.
    pub fn replacing(target: &Path) -> Result<Self, WeightError> {
        Self::open(target, true)
    }

    fn open(target: &Path, replace: bool) -> Result<Self, WeightError> {
        if !replace {
            refuse_occupied(target)?;
        }
        let parent = parent_of(target);
        fs::create_dir_all(parent).map_err(WeightError::io("create", parent))?;
        let (path, ()) = unused(target, |path| fs::create_dir(path))?;
        let _in_use = in_use(&path);
        Ok(Self { guard: Guard { path, committed: false, _in_use }, target: target.to_owned(), replace })
    }

    /// Where to put the content.
    pub fn path(&self) -> &Path {
        &self.guard.path
    }

    /// Syncs everything below and gives the directory its final name.
    pub fn commit(mut self) -> Result<PathBuf, WeightError> {
        sync_tree(&self.guard.path)?;
        let displaced = if self.replace { displace(&self.target)? } else { None };
        if displaced.is_none() {
            refuse_occupied(&self.target)?;
        }
        if let Err(source) = fs::rename(&self.guard.path, &self.target) {
            if let Some(displaced) = displaced {
                // Best effort: the first failure is the one worth reporting.
                let _ = fs::rename(displaced, &self.target);
            }
            return Err(WeightError::io("create", &self.target)(source));
        }
        self.guard.committed = true;
        sync_directory(parent_of(&self.target))?;
        if let Some(displaced) = displaced {
            delete(&displaced).map_err(WeightError::io("remove", &displaced))?;
        }
        Ok(self.target)
    }
}

/// Removes a file or directory, or nothing if there is none: what is at `path` is whole until it is gone.
pub fn remove(path: &Path) -> Result<(), WeightError> {
    match displace(path)? {
        Some(displaced) => delete(&displaced).map_err(WeightError::io("remove", &displaced)),
        None => Ok(()),
    }
}

/// Moves what is at the target out of the way; a directory that is not empty cannot be renamed over.
fn displace(target: &Path) -> Result<Option<PathBuf>, WeightError> {
    if fs::symlink_metadata(target).is_err() {
        return Ok(None);
    }
    let (path, ()) = unused(target, |path| {
        if fs::symlink_metadata(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(target, path)
    })?;
    Ok(Some(path))
}

/// Removes its path when dropped uncommitted.
#[derive(Debug)]
struct Guard {
    path: PathBuf,
    committed: bool,
    _in_use: Option<File>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.committed {
            // A failure here leaves a hidden sibling, which is harmless; there is nobody to report it to.
            let _ = delete(&self.path);
        }
    }
}

fn delete(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn refuse_occupied(target: &Path) -> Result<(), WeightError> {
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(WeightError::io("look at", target)(source)),
        Ok(metadata) if metadata.is_dir() && is_empty(target)? => Ok(()),
        Ok(_) => Err(WeightError::Exists { path: target.to_owned() }),
    }
}

fn is_empty(directory: &Path) -> Result<bool, WeightError> {
    let mut entries = fs::read_dir(directory).map_err(WeightError::io("read", directory))?;
    Ok(entries.next().is_none())
}

fn sync_tree(directory: &Path) -> Result<(), WeightError> {
    for entry in fs::read_dir(directory).map_err(WeightError::io("read", directory))? {
        let entry = entry.map_err(WeightError::io("read", directory))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(WeightError::io("look at", &path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            let file = File::open(&path).map_err(WeightError::io("open", &path))?;
            file.sync_all().map_err(WeightError::io("sync", &path))?;
        }
    }
    sync_directory(directory)
}

/// Makes renames and creations inside `directory` durable, where the system can.
fn sync_directory(directory: &Path) -> Result<(), WeightError> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    let handle = File::open(directory).map_err(WeightError::io("open", directory))?;
    match handle.sync_all() {
        // Some network and FUSE file systems cannot sync a directory; the rename has happened all the same.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        result => result.map_err(WeightError::io("sync", directory)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write(path: &Path, text: &str) -> Result<(), WeightError> {
        write_file(path, |file| file.write_all(text.as_bytes()).map_err(WeightError::io("write", path)))
    }

    #[test]
    fn a_written_file_replaces_the_old_one_and_leaves_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state.json");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(names(home.path()), ["state.json"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state.json");
        write(&path, "one").unwrap();
        let failed = write_file(&path, |file| {
            file.write_all(b"half").unwrap();
            Err(WeightError::Exists { path: "reason".into() })
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(names(home.path()), ["state.json"]);
    }

    #[test]
    fn a_directory_appears_only_when_committed() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("deep").join("step-000100");
        let directory = AtomicDir::new(&target).unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        fs::write(directory.path().join("sub").join("a"), "a").unwrap();
        assert!(!target.exists());
        assert_eq!(directory.commit().unwrap(), target);
        assert_eq!(fs::read_to_string(target.join("sub").join("a")).unwrap(), "a");
        assert_eq!(names(target.parent().unwrap()), ["step-000100"]);
    }

    #[test]
    fn a_dropped_directory_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let directory = AtomicDir::new(&home.path().join("out")).unwrap();
        fs::write(directory.path().join("a"), "a").unwrap();
        drop(directory);
        assert_eq!(names(home.path()), Vec::<String>::new());
    }

    #[test]
    fn an_occupied_directory_is_refused_before_and_at_the_end() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("out");
        let early = AtomicDir::new(&target).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(target.join("precious"), "p").unwrap();
        assert!(matches!(AtomicDir::new(&target), Err(WeightError::Exists { .. })));
        assert!(matches!(early.commit(), Err(WeightError::Exists { .. })));
        assert_eq!(names(&target), ["precious"]);
        assert_eq!(names(home.path()), ["out"]);
    }

    #[test]
    fn an_empty_directory_may_be_filled() {
        let home = tempfile::tempdir().unwrap();
        let directory = AtomicDir::new(home.path().join("out").as_path()).unwrap();
        fs::create_dir(home.path().join("out")).unwrap();
        fs::write(directory.path().join("a"), "a").unwrap();
        directory.commit().unwrap();
        assert_eq!(names(&home.path().join("out")), ["a"]);
    }

    #[test]
    fn a_replaced_directory_leaves_nothing_of_the_old_one() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("adapter");
        for name in ["old", "new"] {
            let directory = AtomicDir::replacing(&target).unwrap();
            fs::write(directory.path().join(name), name).unwrap();
            directory.commit().unwrap();
        }
        assert_eq!(names(&target), ["new"]);
        assert_eq!(names(home.path()), ["adapter"]);
    }

    #[test]
    fn a_removed_directory_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("step-000002");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("a"), "a").unwrap();
        remove(&target).unwrap();
        remove(&target).unwrap();
        assert_eq!(names(home.path()), Vec::<String>::new());
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        assert!(matches!(AtomicDir::replacing(Path::new("/")), Err(WeightError::Nameless { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        fs::write(home.path().join("plain"), "").unwrap();
        write(&home.path().join("atomic"), "").unwrap();
        fs::create_dir(home.path().join("plain-dir")).unwrap();
        AtomicDir::new(&home.path().join("atomic-dir")).unwrap().commit().unwrap();
        assert_eq!(mode(&home.path().join("plain")), mode(&home.path().join("atomic")));
        assert_eq!(mode(&home.path().join("plain-dir")), mode(&home.path().join("atomic-dir")));
    }
}
