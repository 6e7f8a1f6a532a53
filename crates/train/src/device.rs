//! From the recipe's `device` and `dtype` to Burn devices: the only file that knows which backends are compiled in.

pub mod cuda_files;
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
mod kernel_cache;
mod name;
pub mod nvidia_smi;

use burn::tensor::{DType, Device};
use qwen_tune_model::{ComputeDtype, Quantize, Storage};
use qwen_tune_qwen::memory::{Forms, Offload};

use self::cuda_files::CudaFiles;
pub use self::name::{DeviceName, Indices, NoDevice};
use crate::replicas::Exchange;

/// A device that is there, or several of a kind that train one model together.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// Without autodiff; tapes add it tensor by tensor. The first of several.
    pub device: Device,
    /// The others, each with a copy of the model.
    pub others: Vec<Device>,
    /// As a recipe names it.
    pub name: String,
    /// Number format of frozen weights and products.
    pub dtype: DType,
    /// Whether its memory is the machine's own.
    pub on_host: bool,
    /// Why this device, for `plan`.
    pub reason: String,
    /// Why this number format, for `plan`.
    pub dtype_reason: String,
}

impl OpenDevice {
    /// Whether frozen weights and products are in bf16.
    #[must_use]
    pub fn is_in_bf16(&self) -> bool {
        self.dtype == DType::BF16
    }

    /// Whether products take weights in blocks, as GGUF files hold them, where they lie.
    #[must_use]
    pub fn decodes_blocks(&self) -> bool {
        qwen_tune_kernels::decodes_blocks(&self.device) || qwen_tune_kernels::decodes_ggml(&self.device)
    }

    /// How a model is held here.
    #[must_use]
    pub fn storage(&self, quantize: Quantize, offload: Offload) -> Storage {
        let gives_back = self.on_host && offload >= Offload::Weights;
        Storage { dtype: self.dtype, quantize, offload: self.moved(offload), gives_back }
    }

    /// What of an offload moves to another memory: nothing where there is one only, in which files take what waits.
    #[must_use]
    pub fn moved(&self, offload: Offload) -> Offload {
        if self.on_host { Offload::None } else { offload }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// The first one alone: what is only evaluated needs no more.
    #[must_use]
    pub fn first(&self) -> Self {
        Self { others: Vec::new(), ..self.clone() }
    }

    /// Whether [`qwen_tune_kernels::adamw`] has a form of its own here, which takes no memory.
    #[must_use]
    pub fn updates_in_place(&self) -> bool {
        self.kind() == "cpu"
    }

    /// Whose forms of the operations run.
    #[must_use]
    pub fn forms(&self) -> Forms {
        if self.on_host { Forms::Cpu } else { Forms::Gpu }
    }

    /// Bytes that are free on the device, or on that of several which has least, where its driver says so.
    #[must_use]
    pub fn free_memory(&self) -> Option<u64> {
        let DeviceName { kind: "cuda", indices } = self.name.parse().ok()? else { return None };
        let cards = nvidia_smi::cards()?;
        match indices {
            Indices::First | Indices::All => cards.first().map(|card| card.free),
            Indices::These(these) => {
                let free = these.iter().map(|&index| cards.get(index).map(|card| card.free));
                free.collect::<Option<Vec<u64>>>()?.into_iter().min()
            }
        }
    }

    /// How gradients are added over several of them.
    #[must_use]
    pub fn exchange(&self) -> Exchange {
        let by_themselves = self.kind() == "cuda" && self.count() > 1 && CudaFiles::here().nccl.is_some();
        if by_themselves { Exchange::Collective { checked: false } } else { Exchange::Host }
    }

    fn kind(&self) -> &str {
        self.name.split(':').next().unwrap_or_default()
    }
}

/// Faults of the recipe's choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The backend exists but this binary was built without it.
    #[error("device `{name}` needs a build with it")]
    NotBuilt {
        /// As written.
        name: String,
        /// Cargo feature that brings it.
        feature: &'static str,
    },
    /// The backend is compiled in, the device is not there.
    #[error("device `{name}` is not there: {found} of its kind found")]
    Absent {
        /// As written.
        name: String,
        /// Devices of the kind.
        found: usize,
    },
    /// The device is there, what compiles its kernels is not.
    #[error("device `{name}` cannot compile its kernels here: {} not found", .missing.join(" and "))]
    Libraries {
        /// As written.
        name: String,
        /// In words.
        missing: Vec<String>,
        /// What to type.
        command: String,
    },
    /// No such device.
    #[error("`{name}` is no device")]
    Unknown {
        /// As written.
        name: String,
    },
    /// The device does not multiply in this format.
    #[error("device `{name}` does not compute in `{dtype}` yet")]
    Dtype {
        /// Device.
        name: String,
        /// Format.
        dtype: &'static str,
    },
}

impl DeviceError {
    /// Whether another machine or build may have the device: a recipe that names it can be right.
    #[must_use]
    pub fn is_of_this_machine(&self) -> bool {
        matches!(self, Self::NotBuilt { .. } | Self::Absent { .. } | Self::Libraries { .. })
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Libraries { command, .. } => Some(format!("this brings it, and nothing else is needed: `{command}`")),
            _ => None,
        }
    }
}

/// Backends by the name a recipe and a Cargo feature give them, and whether this binary has them.
pub const BACKENDS: [(&str, bool); 5] = [
    ("cpu", cfg!(feature = "cpu")),
    ("cuda", cfg!(feature = "cuda")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("ndarray", cfg!(feature = "ndarray")),
];

/// Opens `name`: `auto` takes the first GPU backend that is compiled in, else the CPU.
///
/// # Errors
/// If there is no such device, it is not compiled in, it cannot compile kernels here, or it does not compute in `dtype`.
pub fn open(name: &str, dtype: ComputeDtype) -> Result<OpenDevice, DeviceError> {
    let Choice { mut devices, name, bf16, reason } = select(name)?;
    let (dtype, dtype_reason) = match (dtype, bf16) {
        (ComputeDtype::F32, _) => (DType::F32, WRITTEN.to_owned()),
        (ComputeDtype::Auto, Bf16::Offered { by }) => (
            DType::F32,
            match by {
                Some(set) => {
                    format!("a CPU's own; `bf16` would halve weights and activations, and {set} multiplies it")
                }
                None => {
                    "a CPU's own; `bf16` would halve weights and activations, but not take less time here".to_owned()
                }
            },
        ),
        (ComputeDtype::Auto, Bf16::Missing) => (DType::F32, "the only one of this device".to_owned()),
        (ComputeDtype::Auto, Bf16::Preferred) => (DType::BF16, "half the memory, and multiplied faster".to_owned()),
        (ComputeDtype::Bf16, Bf16::Preferred) => (DType::BF16, WRITTEN.to_owned()),
        (ComputeDtype::Bf16, Bf16::Offered { by }) => (
            DType::BF16,
            match by {
                Some(set) => format!("{WRITTEN}; multiplied by {set}"),
                None => format!("{WRITTEN}; this CPU widens it to f32 for products: half the memory, not less time"),
            },
        ),
        (ComputeDtype::Bf16, Bf16::Missing) => return Err(DeviceError::Dtype { name, dtype: "bf16" }),
    };
    let on_host = name.starts_with("cpu") || name == "ndarray";
    let device = devices.remove(0);
    Ok(OpenDevice { device, others: devices, name, dtype, on_host, reason, dtype_reason })
}

const WRITTEN: &str = "as the recipe says";

/// The device as it names itself, and what its kernels are compiled for. Opens it, so what is wrong with its driver shows
/// now; a CPU has no name here.
#[must_use]
pub fn identity(device: &OpenDevice) -> Option<String> {
    #[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
    return device.device.identity().map(|identity| format!("{} ({})", identity.name, identity.fingerprint));
    #[cfg(not(any(feature = "cuda", feature = "wgpu", feature = "vulkan")))]
    {
        let _ = device;
        None
    }
}

/// What the device `cpu` computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processor {
    /// Cores that this process may use.
    pub cores: usize,
    /// Instruction set of products: `AVX-512`, `AVX2`, `portable`.
    pub products: &'static str,
    /// Instruction set of products from bf16; `None` where they are widened to f32.
    pub bf16: Option<&'static str>,
}

/// This machine's processor, where the device `cpu` is built in.
#[must_use]
pub fn processor() -> Option<Processor> {
    #[cfg(feature = "cpu")]
    {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let instructions = qwen_tune_kernels::instructions();
        Some(Processor { cores, products: instructions.f32, bf16: instructions.bf16 })
    }
    #[cfg(not(feature = "cpu"))]
    None
}

/// Devices chosen by name, at least one.
struct Choice {
    devices: Vec<Device>,
    name: String,
    bf16: Bf16,
    reason: String,
}

/// Whether a device computes in bf16.
#[derive(Debug, Clone, Copy)]
enum Bf16 {
    /// It does, and `auto` takes it.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "another build"))]
    Preferred,
    /// It does, where the recipe asks for it.
    #[cfg_attr(not(feature = "cpu"), expect(dead_code, reason = "another build"))]
    Offered {
        /// Instructions for its products; `None` where they are widened.
        by: Option<&'static str>,
    },
    /// It does not.
    #[cfg_attr(
        not(any(feature = "ndarray", feature = "wgpu", feature = "vulkan")),
        expect(dead_code, reason = "another build")
    )]
    Missing,
}

fn select(name: &str) -> Result<Choice, DeviceError> {
    let written = || WRITTEN.to_owned();
    let unknown = || DeviceError::Unknown { name: name.to_owned() };
    let DeviceName { kind, indices } = name.parse().map_err(|_| unknown())?;
    match kind {
        "auto" => automatic(),
        "cpu" => cpu(&indices, written()),
        "cuda" => cuda(&indices, written()),
        "wgpu" => wgpu(written()),
        "vulkan" => vulkan(written()),
        "ndarray" => ndarray(written()),
        _ => Err(unknown()),
    }
}

/// A CUDA device that is there but cannot be used is an error: a run that took the CPU instead would be a hundred times as
/// long as its user thinks.
fn automatic() -> Result<Choice, DeviceError> {
    match cuda(&Indices::First, "the first CUDA device".to_owned()) {
        Err(DeviceError::Absent { .. }) => cpu(&Indices::First, "no CUDA device was found".to_owned()),
        Err(DeviceError::NotBuilt { .. }) => cpu(&Indices::First, "no GPU backend is compiled in".to_owned()),
        found => found,
    }
}

#[cfg(feature = "cpu")]
#[expect(clippy::unnecessary_wraps, reason = "the other build answers with an error")]
fn cpu(indices: &Indices, reason: String) -> Result<Choice, DeviceError> {
    let bf16 = Bf16::Offered { by: qwen_tune_kernels::instructions().bf16 };
    let name = DeviceName { kind: "cpu", indices: indices.clone() }.to_string();
    Ok(Choice { devices: vec![Device::flex(); indices.count().unwrap_or(1)], name, bf16, reason })
}
#[cfg(not(feature = "cpu"))]
fn cpu(_: &Indices, _: String) -> Result<Choice, DeviceError> {
    Err(DeviceError::NotBuilt { name: "cpu".to_owned(), feature: "cpu" })
}

#[cfg(feature = "ndarray")]
#[expect(clippy::unnecessary_wraps, reason = "the other build answers with an error")]
fn ndarray(reason: String) -> Result<Choice, DeviceError> {
    #[expect(deprecated, reason = "kept as a second, independent implementation for the parity suite")]
    let device = Device::ndarray();
    Ok(Choice { devices: vec![device], name: "ndarray".to_owned(), bf16: Bf16::Missing, reason })
}
#[cfg(not(feature = "ndarray"))]
fn ndarray(_: String) -> Result<Choice, DeviceError> {
    Err(DeviceError::NotBuilt { name: "ndarray".to_owned(), feature: "ndarray" })
}

#[cfg(feature = "cuda")]
fn cuda(indices: &Indices, reason: String) -> Result<Choice, DeviceError> {
    let choice = enumerated(burn::tensor::DeviceType::Cuda, "cuda", indices, Bf16::Preferred, reason)?;
    let files = CudaFiles::here();
    let missing = files.missing();
    // Without them the first kernel would panic.
    match (missing.is_empty(), files.settings()) {
        (false, _) => Err(DeviceError::Libraries { name: choice.name, missing, command: files.command() }),
        (true, Some(command)) => {
            let missing = vec!["the variables that lead to NVRTC and CUDA's headers".to_owned()];
            Err(DeviceError::Libraries { name: choice.name, missing, command })
        }
        (true, None) => Ok(choice),
    }
}
#[cfg(not(feature = "cuda"))]
fn cuda(indices: &Indices, _: String) -> Result<Choice, DeviceError> {
    let name = DeviceName { kind: "cuda", indices: indices.clone() }.to_string();
    Err(DeviceError::NotBuilt { name, feature: "cuda" })
}

#[cfg(feature = "wgpu")]
fn wgpu(reason: String) -> Result<Choice, DeviceError> {
    enumerated(burn::tensor::DeviceType::Wgpu, "wgpu", &Indices::First, Bf16::Missing, reason)
}
#[cfg(not(feature = "wgpu"))]
fn wgpu(_: String) -> Result<Choice, DeviceError> {
    Err(DeviceError::NotBuilt { name: "wgpu".to_owned(), feature: "wgpu" })
}

#[cfg(feature = "vulkan")]
fn vulkan(reason: String) -> Result<Choice, DeviceError> {
    enumerated(burn::tensor::DeviceType::Vulkan, "vulkan", &Indices::First, Bf16::Missing, reason)
}
#[cfg(not(feature = "vulkan"))]
fn vulkan(_: String) -> Result<Choice, DeviceError> {
    Err(DeviceError::NotBuilt { name: "vulkan".to_owned(), feature: "vulkan" })
}

/// The devices of a kind by their indices. Constructors only name a device, and the first use of one that is not there
/// panics; listing the kind's devices is the safe question.
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
fn enumerated(
    kind: burn::tensor::DeviceType,
    backend: &'static str,
    indices: &Indices,
    bf16: Bf16,
    reason: String,
) -> Result<Choice, DeviceError> {
    kernel_cache::settle();
    let all = Device::enumerate(kind).into_vec();
    let found = all.len();
    let these = match indices {
        Indices::First => vec![0],
        Indices::These(these) => these.clone(),
        Indices::All => (0..found.max(1)).collect(),
    };
    // Named in full where a recipe may: what is resolved here has to mean the same tomorrow.
    let indices = if backend == "cuda" { Indices::These(these.clone()) } else { Indices::First };
    let name = DeviceName { kind: backend, indices }.to_string();
    let devices: Option<Vec<Device>> = these.iter().map(|&index| all.get(index).cloned()).collect();
    match devices {
        Some(devices) => Ok(Choice { devices, name, bf16, reason }),
        None => Err(DeviceError::Absent { name, found }),
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_format_says_how_products_are_taken_from_it() {
        let [auto, f32, bf16] = [ComputeDtype::Auto, ComputeDtype::F32, ComputeDtype::Bf16]
            .map(|dtype| open("cpu", dtype).expect("a CPU computes in both"));
        assert_eq!([auto.dtype, f32.dtype, bf16.dtype], [DType::F32, DType::F32, DType::BF16]);
        assert_eq!(f32.dtype_reason, WRITTEN);
        assert!(auto.dtype_reason.contains("`bf16` would halve weights and activations"), "{}", auto.dtype_reason);
        let by = processor().expect("a CPU is always there").bf16;
        assert!(auto.dtype_reason.contains(by.unwrap_or("not take less time")), "{}", auto.dtype_reason);
        assert!(bf16.dtype_reason.contains(by.unwrap_or("widens")), "{}", bf16.dtype_reason);
    }
}
