//! What a file was when a run began: its SHA-256, so that a resumed run can tell that its base is still the same.

use std::{fs::File, io::Read, path::Path};

use sha2::{Digest, Sha256};

use crate::WeightError;

/// The SHA-256 of a file's content as 64 lower-case hexadecimal digits, read in pieces.
pub fn sha256(path: &Path) -> Result<String, WeightError> {
    let mut file = File::open(path).map_err(WeightError::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).map_err(WeightError::io("read", path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
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
}
