//! `devices`: what this binary can compute on, what is missing and how to get it, and whether each device computes what
//! the CPU does.

mod test;

use qwen_tune_model::ComputeDtype;
use qwen_tune_train::device::cuda_files::CudaFiles;
use qwen_tune_train::device::nvidia_smi::{self, Card};
use qwen_tune_train::device::{BACKENDS, DeviceError, Processor, open, processor};
use serde::Serialize;

use super::{DONE, Ended, written};
use crate::args::DevicesArgs;
use crate::terminal::{Printer, Table, bytes};
use test::Tested;

/// A line of the answer.
#[derive(Debug, Default, Serialize)]
struct Entry {
    device: String,
    state: String,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    processor: Option<ProcessorEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cuda: Option<CudaEntry>,
    /// What brings what is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_test: Option<Tested>,
}

#[derive(Debug, Serialize)]
struct ProcessorEntry {
    cores: usize,
    products: &'static str,
    bf16_products: Option<&'static str>,
}

/// Where CUDA's parts are.
#[derive(Debug, Serialize)]
struct CudaEntry {
    driver: Option<String>,
    nvrtc: Option<String>,
    headers: Option<String>,
    nccl: Option<String>,
    /// Variables that this process runs with and others need for the same libraries.
    environment: std::collections::BTreeMap<&'static str, String>,
}

pub(super) fn run(args: &DevicesArgs, printer: &Printer) -> Ended {
    if let Some(device) = &args.self_test {
        return test::here(device, printer);
    }
    let entries = entries();
    if printer.is_json() {
        written(printer.json(&entries))?;
        return Ok(DONE);
    }
    let mut table = Table::new(["device", "state"]);
    for entry in &entries {
        table.row([entry.device.clone(), entry.state.clone()]);
        if let Some(command) = &entry.command {
            table.row([String::new(), format!("get it: {command}")]);
        }
    }
    let tested: Vec<(&str, &Tested)> =
        entries.iter().filter_map(|entry| Some((entry.device.as_str(), entry.self_test.as_ref()?))).collect();
    written(printer.data(&format!("{}\n{}", table.render(0), test::table(&tested))))?;
    Ok(DONE)
}

/// Every backend's devices, and what `auto` takes.
fn entries() -> Vec<Entry> {
    let mut entries = vec![automatic()];
    for (backend, built) in BACKENDS {
        match backend {
            _ if !built => entries.push(Entry {
                device: backend.to_owned(),
                state: format!("build with `--features {backend}`"),
                ..Entry::default()
            }),
            "cuda" => entries.extend(cuda()),
            _ => entries.push(other(backend)),
        }
    }
    entries
}

fn automatic() -> Entry {
    let state = match open("auto", ComputeDtype::Auto) {
        Ok(device) => format!("{}: {}", device.name, device.reason),
        Err(error) => error.to_string(),
    };
    Entry { device: "auto".to_owned(), state, ..Entry::default() }
}

fn other(backend: &str) -> Entry {
    let device = backend.to_owned();
    match open(backend, ComputeDtype::Auto) {
        Ok(_) => {
            let tested = test::apart(backend);
            let name = tested.name.as_ref().map_or(String::new(), |name| format!(": {name}"));
            let processor = processor().filter(|_| backend == "cpu");
            let cores = processor.map_or(String::new(), |processor| format!(": {}", sentence(processor)));
            Entry {
                device,
                state: format!("built in{cores}{name}"),
                processor: processor.map(|Processor { cores, products, bf16 }| ProcessorEntry {
                    cores,
                    products,
                    bf16_products: bf16,
                }),
                self_test: Some(tested),
                ..Entry::default()
            }
        }
        Err(error) => Entry { device, state: error.to_string(), ..Entry::default() },
    }
}

fn sentence(Processor { cores, products, bf16 }: Processor) -> String {
    let cores = if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") };
    match bf16 {
        Some(set) => format!("{cores}; products by {products}, from bf16 by {set}"),
        None => format!("{cores}; products by {products}, from bf16 widened to f32"),
    }
}

/// The first driver that takes what NVRTC of CUDA 13 writes.
const OLDEST_DRIVER: u32 = 580;

/// CUDA's parts, then its cards.
fn cuda() -> Vec<Entry> {
    let files = CudaFiles::here();
    let cards = nvidia_smi::cards().unwrap_or_default();
    let mut entries = vec![parts(&files, nvidia_smi::is_on_the_bus() || !cards.is_empty())];
    for index in 0.. {
        let name = format!("cuda:{index}");
        let entry = match open(&name, ComputeDtype::Auto) {
            Ok(_) => Entry {
                state: card(cards.get(index)),
                self_test: Some(test::apart(&name)),
                device: name,
                ..Entry::default()
            },
            Err(DeviceError::Libraries { .. }) => {
                Entry { device: name, state: card(cards.get(index)), ..Entry::default() }
            }
            Err(_) => break,
        };
        entries.push(entry);
    }
    if let [only] = &mut entries[..]
        && files.driver.is_some()
    {
        only.state.push_str("; the driver shows no device");
    }
    entries
}

fn card(card: Option<&Card>) -> String {
    card.map_or_else(
        || "there".to_owned(),
        |card| {
            let Card { name, memory, free, capability, driver } = card;
            let (memory, free) = (bytes(*memory), bytes(*free));
            let number = driver.split('.').next().and_then(|major| major.parse::<u32>().ok());
            let old = match number {
                Some(major) if major < OLDEST_DRIVER => format!(", older than CUDA 13 needs: {OLDEST_DRIVER}"),
                _ => String::new(),
            };
            format!("{name}, {memory} ({free} free), compute capability {capability}, driver {driver}{old}")
        },
    )
}

/// What CUDA needs beside a card.
fn parts(files: &CudaFiles, card: bool) -> Entry {
    let shown = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let mut missing = files.missing();
    let command = match (&files.driver, card) {
        (None, false) => {
            missing.insert(0, "a card of NVIDIA's".to_owned());
            None
        }
        (None, true) => {
            missing.insert(0, "the driver (`libcuda.so.1`) of the card that is there".to_owned());
            Some("sudo apt install nvidia-driver".to_owned())
        }
        (Some(_), _) => (!missing.is_empty()).then(|| files.command()),
    };
    let state = match (missing.is_empty(), &files.nvrtc, &files.headers) {
        (true, Some(nvrtc), Some(headers)) => {
            format!("built in; NVRTC {}, headers of {}", nvrtc.display(), headers.display())
        }
        _ => format!("built in; not found: {}", missing.join(", ")),
    };
    Entry {
        device: "cuda".to_owned(),
        state,
        command,
        cuda: Some(CudaEntry {
            driver: shown(&files.driver),
            nvrtc: shown(&files.nvrtc),
            headers: shown(&files.headers),
            nccl: shown(&files.nccl),
            environment: ["LD_LIBRARY_PATH", "CUDA_PATH"]
                .into_iter()
                .filter_map(|name| Some((name, std::env::var(name).ok()?)))
                .collect(),
        }),
        ..Entry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_named_and_its_driver_too_old_or_not() {
        let of = |driver: &str| {
            card(Some(&Card {
                name: "NVIDIA H200".to_owned(),
                memory: 140 << 30,
                free: 139 << 30,
                capability: "9.0".to_owned(),
                driver: driver.to_owned(),
            }))
        };
        let told = "NVIDIA H200, 140.0 GiB (139.0 GiB free), compute capability 9.0, driver 580.159.03";
        assert_eq!(of("580.159.03"), told);
        assert!(of("570.10").ends_with("driver 570.10, older than CUDA 13 needs: 580"));
    }

    #[test]
    fn what_is_missing_comes_with_one_command() {
        let bare = parts(&CudaFiles::default(), false);
        assert!(bare.state.starts_with("built in; not found: a card of NVIDIA's, NVRTC"), "{}", bare.state);
        assert_eq!(bare.command, None);
        let driverless = parts(&CudaFiles::default(), true);
        assert_eq!(driverless.command.as_deref(), Some("sudo apt install nvidia-driver"));
        let driver = CudaFiles { driver: Some("/usr/lib/libcuda.so.1".into()), ..CudaFiles::default() };
        let command = parts(&driver, true).command.unwrap_or_default();
        assert!(command.contains("nvidia-cuda-nvrtc") && command.contains("nvidia-cuda-crt"), "{command}");
        let whole = CudaFiles { nvrtc: Some("/n/libnvrtc.so.13".into()), headers: Some("/n".into()), ..driver };
        let entry = parts(&whole, true);
        assert_eq!(entry.state, "built in; NVRTC /n/libnvrtc.so.13, headers of /n");
        assert_eq!(entry.command, None);
    }
}
