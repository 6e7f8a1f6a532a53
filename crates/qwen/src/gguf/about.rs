//! [`About`]: what a file says of the model besides its numbers.

use qwen_tune_weights::gguf::{Metadata, Value};
use qwen_tune_weights::lock::Lock;

use crate::{Role, TensorSpec};

/// The version of the block formats.
const QUANTIZATION_VERSION: u32 = 2;
/// Where base models are found by their id.
const HUB: &str = "https://huggingface.co/";

/// What people, and tools that list models, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// `general.name`, such as `Qwen3 0.6B Tuned`.
    pub name: String,
    /// What the model was tuned from: its id on the hub, or its directory.
    pub base: Option<String>,
    /// What the base's files were. Kept under a key of our own, which other readers pass over.
    pub base_lock: Option<Lock>,
    /// `general.license`.
    pub license: Option<String>,
    /// `general.author`.
    pub author: Option<String>,
    /// `general.description`.
    pub description: Option<String>,
    /// `general.url`.
    pub url: Option<String>,
    /// `general.tags`.
    pub tags: Vec<String>,
    /// `general.languages`, as two-letter codes.
    pub languages: Vec<String>,
}

impl About {
    /// The keys of any file, before those of its kind. `kind` is `model` or `adapter`.
    pub(super) fn put(&self, metadata: &mut Metadata, architecture: &str, kind: &str, size: Option<&str>) {
        metadata.push("general.architecture", architecture);
        metadata.push("general.type", kind);
        let texts = [
            ("general.name", Some(self.name.as_str()).filter(|name| !name.is_empty())),
            ("general.author", self.author.as_deref()),
            ("general.description", self.description.as_deref()),
            ("general.license", self.license.as_deref()),
            ("general.url", self.url.as_deref()),
            ("general.size_label", size),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                metadata.push(key, text);
            }
        }
        if let Some(base) = &self.base {
            put_base(metadata, base);
        }
        if let Some(lock) = &self.base_lock {
            metadata.push("qwen_tune.base_lock.digest", lock.digest.as_str());
        }
        for (key, list) in [("general.tags", &self.tags), ("general.languages", &self.languages)] {
            if !list.is_empty() {
                metadata.push(key, list.as_slice());
            }
        }
    }
}

/// The keys that come last.
pub(super) fn put_version(metadata: &mut Metadata, file_type: Option<u32>) {
    if let Some(file_type) = file_type {
        metadata.push("general.file_type", file_type);
    }
    metadata.push("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
}

fn put_base(metadata: &mut Metadata, base: &str) {
    metadata.push("general.base_model.count", 1_u32);
    // A hub id is `organisation/name`; anything with another form is a place on somebody's disk, of which the last part
    // says something to others.
    let parts: Vec<&str> = base.split('/').collect();
    let name = parts.iter().rev().find(|part| !part.is_empty()).unwrap_or(&base);
    metadata.push("general.base_model.0.name", *name);
    if let [organisation, name] = parts[..]
        && ![organisation, name].iter().any(|part| part.is_empty() || part.starts_with('.'))
    {
        metadata.push("general.base_model.0.organization", organisation);
        metadata.push("general.base_model.0.repo_url", format!("{HUB}{base}"));
    }
}

/// The number of parameters for people: `8B`, `0.6B`, or `128x0.3B` for so many experts of the size that one makes with
/// all that is not an expert.
pub(super) fn size_label(inventory: &[TensorSpec], experts: Option<usize>) -> String {
    let sum = |role: fn(Role) -> bool| -> u64 {
        inventory.iter().filter(|tensor| role(tensor.role)).map(TensorSpec::elements).sum()
    };
    let shared = sum(|role| role != Role::Experts);
    match experts {
        None => rounded(shared),
        Some(experts) => format!("{experts}x{}", rounded(shared + sum(|role| role == Role::Experts) / experts as u64)),
    }
}

fn rounded(count: u64) -> String {
    let (unit, letter) = match count {
        1_000_000_000_000.. => (1e12, 'T'),
        1_000_000_000.. => (1e9, 'B'),
        1_000_000.. => (1e6, 'M'),
        _ => (1e3, 'K'),
    };
    let scaled = count as f64 / unit;
    // One digit of units is too coarse.
    let decimals = usize::from(scaled < 9.5);
    format!("{scaled:.decimals$}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits_or_more() {
        let labels = [596_049_920, 7_615_616_512, 32_763_876_352, 134_515_008, 9_400, 1_600_000_000_000];
        assert_eq!(labels.map(rounded), ["596M", "7.6B", "33B", "135M", "9.4K", "1.6T"]);
    }

    #[test]
    fn a_base_on_the_hub_is_told_from_one_on_a_disk() {
        let keys = |base: &str| {
            let mut metadata = Metadata::new();
            put_base(&mut metadata, base);
            metadata.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect::<Vec<_>>()
        };
        let key = |name: &str| format!("general.base_model.{name}");
        assert_eq!(
            keys("Qwen/Qwen3-0.6B"),
            [
                (key("count"), Value::U32(1)),
                (key("0.name"), "Qwen3-0.6B".into()),
                (key("0.organization"), "Qwen".into()),
                (key("0.repo_url"), "https://huggingface.co/Qwen/Qwen3-0.6B".into()),
            ]
        );
        for disk in ["/data/models/mine/", "../models/mine", "./mine", "mine"] {
            assert_eq!(keys(disk), [(key("count"), Value::U32(1)), (key("0.name"), "mine".into())], "{disk}");
        }
    }
}
