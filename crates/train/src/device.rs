//! From the recipe's `device` and `dtype` to a Burn device: the only file that knows which backends are compiled in.

use burn::tensor::{DType, Device};
use qwen_tune_model::{ComputeDtype, Quantize, Storage};
use qwen_tune_qwen::memory::Offload;

/// A device that is there.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    /// Without autodiff; tapes add it tensor by tensor.
    pub device: Device,
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
        qwen_tune_kernels::decodes_blocks(&self.device)
    }

    /// How a model is held here.
    #[must_use]
    pub fn storage(&self, quantize: Quantize, offload: Offload) -> Storage {
        // Where the two memories are one, nothing waits elsewhere.
        Storage { dtype: self.dtype, quantize, offload: if self.on_host { Offload::None } else { offload } }
    }

    /// Whether [`qwen_tune_kernels::adamw`] has a form of its own here, which takes no memory.
    #[must_use]
    pub fn updates_in_place(&self) -> bool {
        self.name == "cpu"
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

/// Backends by the name a recipe and a Cargo feature give them, and whether this binary has them.
pub const BACKENDS: [(&str, bool); 5] = [
    ("cpu", cfg!(feature = "cpu")),
    ("cuda", cfg!(feature = "cuda")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("ndarray", cfg!(feature = "ndarray")),
];

/// Names a recipe may use.
pub const DEVICES: &[&str] = &["auto", "cpu", "cuda:0", "wgpu", "vulkan", "ndarray"];

/// Opens `name`: `auto` takes the first GPU backend that is compiled in, else the CPU.
///
/// # Errors
/// If there is no such device, it is not compiled in, or it does not compute in `dtype`.
pub fn open(name: &str, dtype: ComputeDtype) -> Result<OpenDevice, DeviceError> {
    let (device, name, bf16, reason) = select(name)?;
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
    let on_host = matches!(name.as_str(), "cpu" | "ndarray");
    Ok(OpenDevice { device, name, dtype, on_host, reason, dtype_reason })
}

const WRITTEN: &str = "as the recipe says";

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

type Choice = (Device, String, Bf16, String);

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
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let unknown = || DeviceError::Unknown { name: name.to_owned() };
    let index: usize = index.parse().map_err(|_| unknown())?;
    match kind {
        "auto" => automatic(),
        "cpu" => cpu(written()),
        "cuda" => cuda(index, written()),
        "wgpu" => wgpu(index, written()),
        "vulkan" => vulkan(index, written()),
        "ndarray" => ndarray(written()),
        _ => Err(unknown()),
    }
}

fn automatic() -> Result<Choice, DeviceError> {
    cuda(0, "the first CUDA device".to_owned()).or_else(|error| {
        cpu(match error {
            DeviceError::Absent { .. } => "no CUDA device was found".to_owned(),
            _ => "no GPU backend is compiled in".to_owned(),
        })
    })
}

#[cfg(feature = "cpu")]
#[expect(clippy::unnecessary_wraps, reason = "the other build answers with an error")]
fn cpu(reason: String) -> Result<Choice, DeviceError> {
    let bf16 = Bf16::Offered { by: qwen_tune_kernels::instructions().bf16 };
    Ok((Device::flex(), "cpu".to_owned(), bf16, reason))
}
#[cfg(not(feature = "cpu"))]
fn cpu(_: String) -> Result<Choice, DeviceError> {
    Err(DeviceError::NotBuilt { name: "cpu".to_owned(), feature: "cpu" })
}

#[cfg(feature = "ndarray")]
#[expect(clippy::unnecessary_wraps, reason = "the other build answers with an error")]
fn ndarray(reason: String) -> Result<Choice, DeviceError> {
    #[expect(deprecated, reason = "kept as a second, independent implementation for the parity suite")]
    let device = Device::ndarray();
    Ok((device, "ndarray".to_owned(), Bf16::Missing, reason))
}
#[cfg(not(feature = "ndarray"))]
fn ndarray(_: String) -> Result<Choice, DeviceError> {
    Err(DeviceError::NotBuilt { name: "ndarray".to_owned(), feature: "ndarray" })
}

#[cfg(feature = "cuda")]
fn cuda(index: usize, reason: String) -> Result<Choice, DeviceError> {
    enumerated(burn::tensor::DeviceType::Cuda, "cuda", index, Bf16::Preferred, reason)
}
#[cfg(not(feature = "cuda"))]
fn cuda(index: usize, _: String) -> Result<Choice, DeviceError> {
    Err(DeviceError::NotBuilt { name: format!("cuda:{index}"), feature: "cuda" })
}

#[cfg(feature = "wgpu")]
fn wgpu(index: usize, reason: String) -> Result<Choice, DeviceError> {
    enumerated(burn::tensor::DeviceType::Wgpu, "wgpu", index, Bf16::Missing, reason)
}
#[cfg(not(feature = "wgpu"))]
fn wgpu(_: usize, _: String) -> Result<Choice, DeviceError> {
    Err(DeviceError::NotBuilt { name: "wgpu".to_owned(), feature: "wgpu" })
}

#[cfg(feature = "vulkan")]
fn vulkan(index: usize, reason: String) -> Result<Choice, DeviceError> {
    enumerated(burn::tensor::DeviceType::Vulkan, "vulkan", index, Bf16::Missing, reason)
}
#[cfg(not(feature = "vulkan"))]
fn vulkan(_: usize, _: String) -> Result<Choice, DeviceError> {
    Err(DeviceError::NotBuilt { name: "vulkan".to_owned(), feature: "vulkan" })
}

/// The device of a kind by its index. Constructors only name a device, and the first use of one that is not there
/// panics; listing the kind's devices is the safe question.
#[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
fn enumerated(
    kind: burn::tensor::DeviceType,
    backend: &str,
    index: usize,
    bf16: Bf16,
    reason: String,
) -> Result<Choice, DeviceError> {
    let devices = Device::enumerate(kind).into_vec();
    let (name, found) = (format!("{backend}:{index}"), devices.len());
    match devices.into_iter().nth(index) {
        Some(device) => Ok((device, name, bf16, reason)),
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
