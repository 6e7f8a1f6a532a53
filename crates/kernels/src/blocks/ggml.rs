//! ggml's block formats as a GPU decodes them. On a CPU, whoever reads the files does (`qwen-tune-weights`).

use burn::tensor::Device;

use super::Packed;

/// Numbers in blocks, as GGUF files hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "ggml's own names")]
#[expect(non_camel_case_types, reason = "ggml's own names")]
pub enum Ggml {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Ggml {
    /// All that are decoded.
    pub const ALL: [Self; 8] =
        [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4_K, Self::Q5_K, Self::Q6_K];

    /// The format of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// As ggml writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// Numbers of a block, and its bytes.
    #[must_use]
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// These whole blocks in the memory of a device, decoded there bit for bit as ggml does; `None` where that is no GPU.
    ///
    /// # Panics
    /// If a block is not whole.
    #[must_use]
    pub fn on(self, bytes: &[u8], device: &Device) -> Option<Box<dyn Packed>> {
        assert!(bytes.len().is_multiple_of(self.block().1), "blocks: {} bytes of {}", bytes.len(), self.name());
        #[cfg(feature = "gpu")]
        return super::cube::ggml_on(self, bytes, device);
        #[cfg(not(feature = "gpu"))]
        {
            let _ = device;
            None
        }
    }
}

/// Whether [`Ggml::on`] has a place for blocks here.
#[must_use]
pub fn decodes_ggml(device: &Device) -> bool {
    #[cfg(feature = "gpu")]
    return super::cube::is_gpu(device);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = device;
        false
    }
}
