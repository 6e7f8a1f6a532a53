//! The hidden siblings that content is written under: their names, and which of them nobody writes any more.

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::WeightError;

const MARK: &str = ".partial-";

/// Tries hidden sibling names until `make` succeeds. Plain creation rather than a temporary-file library: the result
/// keeps the permissions that the user's umask gives.
pub(super) fn unused<T>(target: &Path, make: impl Fn(&Path) -> io::Result<T>) -> Result<(PathBuf, T), WeightError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = target.file_name() else {
        return Err(WeightError::Nameless { path: target.to_owned() });
    };
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!("{MARK}{}-{number}", process::id()));
        let path = super::parent_of(target).join(hidden);
        match make(&path) {
            Ok(made) => return Ok((path, made)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(WeightError::io("create", path)(source)),
        }
    }
}

/// A handle with the lock that says that a directory is being filled; `None` where directories cannot be locked.
pub(super) fn in_use(directory: &Path) -> Option<File> {
    let handle = File::open(directory).ok()?;
    handle.try_lock().ok()?;
    Some(handle)
}

/// Removes the hidden siblings directly in `directory` that killed processes left; gives their paths.
///
/// A writer holds a lock on its sibling, which the system takes from it however it ends. Only what is unlocked goes, and
/// of that only what no other living process of this machine has the number of, because a sibling exists for a moment
/// before its lock. (The lock alone would do in a container, where every process may have the same number.)
pub fn sweep(directory: &Path) -> Result<Vec<PathBuf>, WeightError> {
    let mut removed = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        entries => entries.map_err(WeightError::io("read", directory))?,
    };
    for entry in entries {
        let path = entry.map_err(WeightError::io("read", directory))?.path();
        let writer = path.file_name().and_then(|name| writer_of(name.to_str()?));
        if writer.is_some_and(|writer| writer == process::id() || !lives(writer)) && !is_locked(&path) {
            super::delete(&path).map_err(WeightError::io("remove", &path))?;
            removed.push(path);
        }
    }
    removed.sort();
    Ok(removed)
}

/// The process that a sibling's name speaks of.
fn writer_of(name: &str) -> Option<u32> {
    let (_, numbers) = name.strip_prefix('.')?.rsplit_once(MARK)?;
    let (process, count) = numbers.split_once('-')?;
    count.parse::<u64>().ok()?;
    process.parse().ok()
}

/// Whether a process of this number exists, where the system says so in a file.
fn lives(process: u32) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|handle| matches!(handle.try_lock(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::atomic::{AtomicDir, PartialFile};

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        // No process has this number: the largest there can be is below it.
        let left = home.path().join(".step-000004.partial-4194399-7");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("optimizer.safetensors"), "half").unwrap();
        fs::write(home.path().join(".state.json.partial-4194399-8"), "half").unwrap();
        let stays = [".hidden", "step-000002", ".x.partial-", ".x.partial-1", ".x.partial-a-1", "x.partial-4194399-1"];
        stays.iter().for_each(|name| fs::write(home.path().join(name), "").unwrap());
        assert_eq!(sweep(home.path()).unwrap().len(), 2);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), stays.len());
        assert_eq!(sweep(&home.path().join("absent")).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_is_being_written_stays() {
        let home = tempfile::tempdir().unwrap();
        let directory = AtomicDir::new(&home.path().join("merged")).unwrap();
        let file = PartialFile::create(&home.path().join("state.json")).unwrap();
        assert_eq!(sweep(home.path()).unwrap(), Vec::<PathBuf>::new());
        directory.commit().unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_unlocked_sibling_of_another_living_process_stays() {
        let home = tempfile::tempdir().unwrap();
        let mut other = process::Command::new("sleep").arg("30").spawn().unwrap();
        let path = home.path().join(format!(".merged.partial-{}-0", other.id()));
        fs::create_dir(&path).unwrap();
        assert_eq!(sweep(home.path()).unwrap(), Vec::<PathBuf>::new());
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(sweep(home.path()).unwrap(), [path]);
    }
}
