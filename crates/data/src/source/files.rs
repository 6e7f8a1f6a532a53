//! Paths and globs of a source to a sorted list of files.

use std::path::{Path, PathBuf};

use super::Paths;
use crate::error::{DataError, near};

const EXTENSIONS: [&str; 7] = ["parquet", "pq", "jsonl", "ndjson", "json", "arrow", "feather"];

/// The files that `paths` names, or every mistake in it. Relative paths are tried from each of `roots` in turn; the
/// first that leads to a file wins. Files of one glob or directory are sorted, duplicates within it left out.
pub fn expand(paths: &Paths, roots: &[PathBuf]) -> Result<Vec<PathBuf>, Vec<DataError>> {
    let mut files = Vec::new();
    let mut errors = Vec::new();
    for pattern in paths.as_slice() {
        match expand_one(pattern, roots) {
            Ok(found) => files.extend(found),
            Err(error) => errors.push(error),
        }
    }
    if paths.as_slice().is_empty() {
        errors.push(DataError::NoPath);
    }
    if errors.is_empty() { Ok(files) } else { Err(errors) }
}

fn expand_one(pattern: &str, roots: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    if pattern.trim().is_empty() {
        return Err(DataError::NoPath);
    }
    let given = Path::new(pattern);
    let here = [PathBuf::new()];
    let roots = if given.is_absolute() || roots.is_empty() { &here[..] } else { roots };
    for root in roots {
        let path = if given.is_absolute() { given.to_owned() } else { root.join(given) };
        // A file whose name has brackets is a file before it is a glob.
        if path.is_file() {
            return Ok(vec![path]);
        }
        if path.is_dir() {
            let found = directory(&path)?;
            if !found.is_empty() {
                return Ok(found);
            }
            continue;
        }
        if pattern.contains(['*', '?', '[']) {
            let root = glob::Pattern::escape(&root.to_string_lossy());
            let full = if given.is_absolute() { given.to_owned() } else { Path::new(&root).join(given) };
            let found = matches(pattern, &full.to_string_lossy())?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    Err(DataError::NoMatch { pattern: pattern.to_owned(), near: similar(given, roots) })
}

fn matches(pattern: &str, full: &str) -> Result<Vec<PathBuf>, DataError> {
    let bad = |message: String| DataError::BadPattern { pattern: pattern.to_owned(), message };
    let mut found = Vec::new();
    for entry in glob::glob(full).map_err(|e| bad(e.to_string()))? {
        let path = entry.map_err(|e| DataError::io(e.path(), std::io::Error::other(e.to_string())))?;
        if path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn directory(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| DataError::io(path, e))? {
        let file = entry.map_err(|e| DataError::io(path, e))?.path();
        let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if file.is_file() && EXTENSIONS.contains(&extension.as_str()) {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

/// A file of a similar name in the directory where one was looked for.
fn similar(given: &Path, roots: &[PathBuf]) -> Option<String> {
    let name = given.file_name()?.to_str()?;
    roots.iter().find_map(|root| {
        let directory = root.join(given.parent().unwrap_or(Path::new("")));
        let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        let names: Vec<String> =
            std::fs::read_dir(directory).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        let found = near(name, names.iter().map(String::as_str))?;
        Some(given.with_file_name(found).to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn directory_of(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        dir
    }

    #[test]
    fn globs_are_sorted_and_directories_stand_for_their_data_files() {
        let dir = directory_of(&["b.jsonl", "a.jsonl", "c.txt", "x[1].jsonl"]);
        let roots = [dir.path().to_owned()];
        let names = |pattern: &str| -> Vec<String> {
            expand(&Paths::One(pattern.into()), &roots)
                .unwrap()
                .iter()
                .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names("[ab].jsonl"), ["a.jsonl", "b.jsonl"]);
        assert_eq!(names("."), ["a.jsonl", "b.jsonl", "x[1].jsonl"]);
        assert_eq!(names("x[1].jsonl"), ["x[1].jsonl"]);
    }

    #[test]
    fn a_path_without_a_file_names_a_similar_one() {
        let dir = directory_of(&["train.parquet"]);
        let errors = expand(&Paths::Many(vec!["trian.parquet".into(), "*.nothing".into()]), &[dir.path().to_owned()])
            .unwrap_err();
        assert_eq!(errors[0].to_string(), "no file matches `trian.parquet`; did you mean `train.parquet`?");
        assert_eq!(errors.len(), 2);
    }

    #[test]
    fn the_first_root_that_has_the_file_wins() {
        let (one, two) = (directory_of(&["b.jsonl"]), directory_of(&["a.jsonl", "b.jsonl"]));
        let roots = [one.path().to_owned(), two.path().to_owned()];
        let found = expand(&Paths::Many(vec!["a.jsonl".into(), "b.jsonl".into()]), &roots).unwrap();
        assert_eq!(found, [two.path().join("a.jsonl"), one.path().join("b.jsonl")]);
    }
}
