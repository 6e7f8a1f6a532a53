#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;

/// A file put together field by field.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(tensors: u64, keys: u64) -> Self {
        Self(MAGIC.to_vec()).u32(3).u64(tensors).u64(keys)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(self, text: impl AsRef<[u8]>) -> Self {
        let mut raw = self.u64(text.as_ref().len() as u64);
        raw.0.extend(text.as_ref());
        raw
    }

    fn tensor(self, name: &str, extents: &[u64], ty: u32, offset: u64) -> Self {
        let raw = self.text(name).u32(extents.len() as u32);
        extents.iter().fold(raw, |raw, &extent| raw.u64(extent)).u32(ty).u64(offset)
    }

    fn data(mut self, alignment: usize, bytes: usize) -> Self {
        let length = self.0.len().next_multiple_of(alignment) + bytes;
        self.0.resize(length, 7);
        self
    }

    fn parse(&self) -> Result<Header, WeightError> {
        parse(Path::new("m.gguf"), &self.0)
    }

    fn fault(&self) -> String {
        let fault = self.parse().unwrap_err().to_string();
        fault.strip_prefix("`m.gguf` is malformed at ").unwrap().to_owned()
    }
}

#[test]
fn other_files_are_told_apart() {
    assert_eq!(
        Raw(b"PK\x03\x04".to_vec()).fault(),
        r"byte 0: a GGUF file begins with `GGUF`, this one with `PK\x03\x04`"
    );
    assert_eq!(Raw(Vec::new()).fault(), "byte 0: the magic number needs 4 bytes and 0 are left");
    assert_eq!(Raw(MAGIC.to_vec()).u32(1).fault(), "byte 4: version 1 is not supported: expected 2 or 3");
    assert_eq!(
        Raw(MAGIC.to_vec()).u32(3 << 24).fault(),
        "byte 4: version 50331648 is not supported: expected 2 or 3 (the file is big-endian)"
    );
    let mut second = Raw::new(0, 0);
    second.0[4] = 2;
    assert!(second.parse().is_ok());
}

#[test]
fn faults_of_keys_are_named_with_their_place() {
    let key = |name: &str, ty| Raw::new(0, 1).text(name).u32(ty);
    let twice = Raw::new(0, 2).text("a").u32(0).data(1, 1).text("a").u32(0).data(1, 1);
    let alignment = |value| Raw::new(0, 1).text("general.alignment").u32(4).u32(value);
    let faults = [
        key("", 4).u32(1).fault(),
        twice.fault(),
        key("a", 13).fault(),
        key("a", 4).fault(),
        key("a", 8).u64(u64::MAX).fault(),
        key("a", 8).text([0xff]).fault(),
        Raw::new(0, 1).text([0xc3]).fault(),
        Raw::new(0, 1).u64(1 << 60).fault(),
        key("a", 7).data(1, 1).fault(),
        key("a", 9).u32(9).u64(1).u32(0).u64(0).fault(),
        key("a", 9).u32(4).u64(u64::MAX).fault(),
        key("a", 9).u32(8).u64(1 << 40).fault(),
        key("a", 9).u32(8).u64(2).text("b").u64(9).fault(),
        key("a", 9).u32(7).u64(1).data(1, 1).fault(),
        alignment(0).fault(),
        alignment(48).fault(),
        Raw::new(0, 1).text("general.alignment").u32(10).u64(32).fault(),
        Raw::new(0, 5).fault(),
        Raw::new(u64::MAX, 0).fault(),
    ];
    assert_eq!(
        faults,
        [
            "byte 24: a key is empty",
            "byte 38: key `a` occurs twice",
            "byte 24: key `a` has the unknown value type 13",
            "byte 24: the value of key `a` needs 4 bytes and 0 are left",
            "byte 24: the value of key `a` needs 18446744073709551615 bytes and 0 are left",
            "byte 24: the value of key `a` is not UTF-8",
            "byte 24: the name of key 0 of 1 is not UTF-8",
            "byte 24: the name of key 0 of 1 needs 1152921504606846976 bytes and 0 are left",
            "byte 24: key `a` holds a bool of 7, which is neither 0 nor 1",
            "byte 24: key `a` is an array of arrays",
            "byte 24: the value of key `a` needs 18446744073709551615 bytes and 0 are left",
            "byte 24: the value of key `a` needs 8796093022208 bytes and 0 are left",
            "byte 24: element 1 of key `a` needs 9 bytes and 0 are left",
            "byte 24: key `a` holds a bool of 7, which is neither 0 nor 1",
            "byte 24: key `general.alignment` is U32 0; expected a power of two as U32",
            "byte 24: key `general.alignment` is U32 48; expected a power of two as U32",
            "byte 24: key `general.alignment` is U64 32; expected a power of two as U32",
            "byte 24: the name of key 0 of 5 needs 8 bytes and 0 are left",
            "byte 24: the name of tensor 0 of 18446744073709551615 needs 8 bytes and 0 are left",
        ]
    );
}

#[test]
fn faults_of_tensors_are_named_with_their_place() {
    let one = |extents: &[u64], ty, offset| Raw::new(1, 0).tensor("a", extents, ty, offset);
    let two = |offset| Raw::new(2, 0).tensor("a", &[3], 0, 0).tensor("b", &[3], 0, offset).data(32, 64);
    let faults = [
        Raw::new(1, 0).tensor("", &[1], 0, 0).data(32, 32).fault(),
        Raw::new(1, 0).tensor(&"x".repeat(64), &[1], 0, 0).data(32, 32).fault(),
        Raw::new(2, 0).tensor("a", &[1], 0, 0).tensor("a", &[1], 0, 32).data(32, 64).fault(),
        one(&[1; 5], 0, 0).data(32, 32).fault(),
        one(&[8], 4, 0).data(32, 32).fault(),
        one(&[100, 256], 12, 0).data(32, 32).fault(),
        one(&[1 << 32, 1 << 32], 0, 0).data(32, 32).fault(),
        one(&[1 << 62], 24, 0).data(32, 32).fault(),
        one(&[9], 0, 0).data(32, 32).fault(),
        one(&[8], 0, 32).data(32, 64).fault(),
        two(0).fault(),
        two(12).fault(),
        two(64).fault(),
        one(&[8], 0, 0).data(32, 33).fault(),
        Raw::new(1, 0).text("a").u32(2).u64(1).fault(),
    ];
    assert_eq!(
        faults,
        [
            "byte 24: a tensor has no name".to_owned(),
            format!("byte 24: tensor `{}` has a name of 64 bytes; at most 63 are allowed", "x".repeat(64)),
            "byte 57: tensor `a` occurs twice".to_owned(),
            "byte 24: tensor `a` has 5 axes; at most 4 are allowed".to_owned(),
            "byte 24: tensor `a` has the unknown type 4".to_owned(),
            "byte 24: tensor `a` is Q4_K with rows of 100, which is not a multiple of 256".to_owned(),
            "byte 24: tensor `a` is F32 [4294967296, 4294967296], more bytes than can be addressed".to_owned(),
            "byte 24: tensor `a` is I8 [4611686018427387904], more bytes than can be addressed".to_owned(),
            "byte 24: the data of tensor `a` needs 36 bytes and 32 are left".to_owned(),
            "byte 24: tensor `a` begins at byte 32 of the data; expected 0, where the tensor before it ends".to_owned(),
            "byte 57: tensor `b` begins at byte 0 of the data; expected 32, where the tensor before it ends".to_owned(),
            "byte 57: tensor `b` begins at byte 12 of the data; expected 32, where the tensor before it ends"
                .to_owned(),
            "byte 57: tensor `b` begins at byte 64 of the data; expected 32, where the tensor before it ends"
                .to_owned(),
            "byte 96: 33 bytes follow the header; its tensors take 32".to_owned(),
            "byte 24: the entry of tensor `a` needs 8 bytes and 0 are left".to_owned(),
        ]
    );
}

#[test]
fn the_alignment_of_the_file_counts() {
    let raw = Raw::new(2, 1).text("general.alignment").u32(4).u32(64);
    let header = raw.clone().tensor("a", &[3], 0, 0).tensor("b", &[5], 0, 64).data(64, 64 + 20).parse().unwrap();
    let begin = header.entries[0].begin;
    assert!(begin.is_multiple_of(64));
    assert_eq!(
        (header.entries[0].end, header.entries[1].begin, header.entries[1].end),
        (begin + 12, begin + 64, begin + 84)
    );
    let fault = raw.tensor("a", &[3], 0, 0).tensor("b", &[5], 0, 32).data(64, 64).fault();
    assert!(fault.ends_with("expected 64, where the tensor before it ends"), "{fault}");
}

#[test]
fn every_prefix_of_a_file_is_an_error_but_for_the_last_padding() {
    let raw = Raw::new(1, 1).text("a").u32(8).text("value").tensor("t", &[2, 3], 0, 0).data(32, 32);
    let whole = raw.0.len();
    for length in 0..=whole {
        let sound = Raw(raw.0[..length].to_vec()).parse().is_ok();
        assert_eq!(sound, length >= whole - 8, "{length}");
    }
}
