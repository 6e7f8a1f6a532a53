//! Lets `cubecl-cuda` build without an LLVM: the names it uses from `cubecl-llvm`, and no compiler behind them.
//!
//! `cubecl-cuda` has two compilers, CUDA C++ through NVRTC and LLVM, and always builds both; the LLVM one downloads an
//! LLVM while it builds. Our `cuda` feature selects CUDA C++ (`cubecl/cuda-cpp`), so nothing here runs. If a build
//! does end up on the LLVM compiler, its first kernel fails with an error that names the missing feature.

use std::convert::Infallible;
use std::ffi::c_char;
use std::fmt;

use cubecl_environment::backtrace::BackTrace;
use cubecl_ir::nvidia::SmArch;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::{BufferIOAttr, KernelDefinition};

use nvptx::ptx_version::PtxVersion;

pub mod nvptx;
pub mod shared;

/// What the compiler would produce code for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA's PTX.
    Nvptx,
}

/// The compiler that is not there.
#[derive(Debug, Clone)]
pub struct PlironCompiler {
    /// What it would produce code for.
    pub target: LlvmTarget,
}

/// Options of the compiler; none is read.
#[derive(Debug, Default)]
pub struct PlironOptions {
    /// AMD architecture: never any.
    pub arch: Option<Infallible>,
    /// NVIDIA architecture.
    pub sm_arch: Option<SmArch>,
    /// PTX version: never any.
    pub ptx_version: Option<PtxVersion>,
    /// Whether scalars travel in the kernel's parameters.
    pub grid_constants: bool,
}

/// A compiled kernel: never any.
#[derive(Debug, Clone)]
pub enum PlironArtifact {
    /// A kernel in PTX.
    NvptxCode(NvptxModule),
}

/// A kernel in PTX: never any.
#[derive(Debug, Clone)]
pub struct NvptxModule {
    /// PTX text, ended by a zero.
    pub ptx: Vec<c_char>,
    /// Name of the kernel in it.
    pub entrypoint: String,
    /// The text before compilation.
    pub ir: String,
    /// Bytes of shared memory a launch needs.
    pub shared_memory_size: usize,
    /// How each buffer is used, in the order they are bound.
    pub io: Vec<BufferIOAttr>,
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM: it compiles kernels through CUDA C++, which needs the feature \
                     `cubecl/cuda-cpp`"
                .to_owned(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
