//! How a recipe names devices: `auto`, `cpu`, `cuda:0`; several of a kind that train together as `cuda:0,1` or `cuda:all`,
//! and as `cpu:0,1`, two copies of the model on the one CPU: slower than one, and there to try such runs out.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// Kinds of devices, as a recipe writes them.
const KINDS: [&str; 6] = ["auto", "cpu", "cuda", "wgpu", "vulkan", "ndarray"];
/// More than any machine has; a typing error would otherwise make so many copies.
const MOST: usize = 64;

/// A device or several of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceName {
    /// `auto`, `cpu`, `cuda`, `wgpu`, `vulkan` or `ndarray`.
    pub kind: &'static str,
    /// Which of its devices.
    pub indices: Indices,
}

/// Which devices of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Indices {
    /// None is named: the first.
    First,
    /// These, each once.
    These(Vec<usize>),
    /// All there are.
    All,
}

impl Indices {
    /// How many, where the name says so.
    #[must_use]
    pub fn count(&self) -> Option<usize> {
        match self {
            Self::First => Some(1),
            Self::These(these) => Some(these.len()),
            Self::All => None,
        }
    }
}

/// The name is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoDevice {
    /// The kind, where that is right and what follows is not.
    pub kind: Option<&'static str>,
}

impl FromStr for DeviceName {
    type Err = NoDevice;

    fn from_str(text: &str) -> Result<Self, NoDevice> {
        let (kind, after) = text.split_once(':').map_or((text, None), |(kind, after)| (kind, Some(after)));
        let kind = KINDS.into_iter().find(|known| *known == kind).ok_or(NoDevice { kind: None })?;
        let indices = match after {
            None => Some(Indices::First),
            Some("all") => Some(Indices::All),
            Some(list) => numbers(list).map(Indices::These),
        };
        let indices = indices.filter(|indices| match (kind, indices) {
            (_, Indices::First) | ("cuda", _) => true,
            // The CPU is one device: its copies are counted from 0, and one is no copy.
            ("cpu", Indices::These(these)) => these.len() > 1 && these.iter().enumerate().all(|(i, &index)| i == index),
            _ => false,
        });
        indices.map(|indices| Self { kind, indices }).ok_or(NoDevice { kind: Some(kind) })
    }
}

fn numbers(list: &str) -> Option<Vec<usize>> {
    let these: Vec<usize> = list.split(',').map(|number| number.trim().parse().ok()).collect::<Option<_>>()?;
    let repeated = these.iter().enumerate().any(|(i, index)| these[..i].contains(index));
    (these.len() <= MOST && !repeated).then_some(these)
}

impl Display for DeviceName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)?;
        match &self.indices {
            Indices::First => Ok(()),
            Indices::All => f.write_str(":all"),
            Indices::These(these) => {
                let list: Vec<String> = these.iter().map(ToString::to_string).collect();
                write!(f, ":{}", list.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in ["auto", "cpu", "cpu:0,1,2", "cuda", "cuda:0", "cuda:3,1", "cuda:all", "wgpu", "vulkan", "ndarray"]
        {
            assert_eq!(name.parse::<DeviceName>().map(|name| name.to_string()), Ok(name.to_owned()));
        }
        assert_eq!("cuda: 1, 2".parse::<DeviceName>().map(|name| name.indices), Ok(Indices::These(vec![1, 2])));
    }

    #[test]
    fn what_means_nothing_is_none() {
        for (name, kind) in [
            ("gpu", None),
            ("", None),
            ("cuda:", Some("cuda")),
            ("cuda:0,0", Some("cuda")),
            ("cuda:x", Some("cuda")),
            ("cpu:0", Some("cpu")),
            ("cpu:2", Some("cpu")),
            ("cpu:1,2", Some("cpu")),
            ("cpu:all", Some("cpu")),
            ("wgpu:0,1", Some("wgpu")),
            ("auto:all", Some("auto")),
        ] {
            assert_eq!(name.parse::<DeviceName>(), Err(NoDevice { kind }), "{name}");
        }
    }
}
