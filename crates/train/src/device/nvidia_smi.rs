//! What NVIDIA's driver says about its cards, asked of the program that comes with it: without opening a device, and
//! whatever state CUDA is in.

use std::process::{Command, Stdio};

/// One card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// As it names itself.
    pub name: String,
    /// Bytes.
    pub memory: u64,
    /// Bytes that nobody has taken.
    pub free: u64,
    /// Compute capability, such as `9.0`.
    pub capability: String,
    /// Version of the driver.
    pub driver: String,
}

const FIELDS: &str = "--query-gpu=name,memory.total,memory.free,compute_cap,driver_version";

/// The cards in the order in which CUDA numbers them for this process; `None` where the driver's program is not there or
/// does not answer.
#[must_use]
pub fn cards() -> Option<Vec<Card>> {
    let output = Command::new("nvidia-smi")
        .args([FIELDS, "--format=csv,noheader,nounits"])
        .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let all = output.status.success().then(|| read(&String::from_utf8_lossy(&output.stdout)))?;
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        // Names of cards rather than numbers are left to CUDA: nothing is said rather than something wrong.
        Ok(visible) => visible.split(',').map(|index| all.get(index.trim().parse::<usize>().ok()?).cloned()).collect(),
        Err(_) => Some(all),
    }
}

/// Whether a display or compute controller of NVIDIA's is on the bus, driver or not; Linux only.
#[must_use]
pub fn is_on_the_bus() -> bool {
    let says = |device: &std::path::Path, file: &str, beginning: &str| {
        std::fs::read_to_string(device.join(file)).is_ok_and(|text| text.starts_with(beginning))
    };
    let devices = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten();
    let mut paths = devices.filter_map(|device| Some(device.ok()?.path()));
    paths.any(|device| says(&device, "vendor", "0x10de") && says(&device, "class", "0x03"))
}

fn read(text: &str) -> Vec<Card> {
    text.lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(", ").map(str::trim).collect();
            let &[name, memory, free, capability, driver] = &fields[..] else { return None };
            let bytes = |mebibytes: &str| mebibytes.parse::<u64>().ok().map(|size| size << 20);
            Some(Card {
                name: name.to_owned(),
                memory: bytes(memory)?,
                free: bytes(free)?,
                capability: capability.to_owned(),
                driver: driver.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_program_become_cards() {
        let text =
            "NVIDIA H200, 143771, 143156, 9.0, 580.159.03\nNVIDIA GeForce RTX 3060, 12288, 11000, 8.6, 580.159.03\n";
        let cards = read(text);
        assert_eq!(cards.len(), 2);
        assert_eq!((cards[0].memory, cards[1].free), (143_771 << 20, 11_000 << 20));
        assert_eq!((cards[1].name.as_str(), cards[1].capability.as_str()), ("NVIDIA GeForce RTX 3060", "8.6"));
        assert_eq!(read("No devices were found\n"), []);
    }
}
