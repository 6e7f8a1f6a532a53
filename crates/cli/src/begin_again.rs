//! CUDA's libraries from pip lie where no loader looks, and a process cannot change where its own looks: it begins again
//! with the variables that lead there. Nothing is done where they are not needed.

use qwen_tune_train::device::BACKENDS;
use qwen_tune_train::device::cuda_files::{BEGUN_AGAIN, CudaFiles};

/// Begins this process again where CUDA's libraries would not be found otherwise. Returns where that is not so or cannot be
/// done; a device that lacks its libraries then says so when it is opened.
pub fn with_cuda_libraries() {
    if BACKENDS.contains(&("cuda", true)) && std::env::var_os(BEGUN_AGAIN).is_none() {
        let files = CudaFiles::here();
        if files.driver.is_some() && !files.environment.is_empty() {
            begin(&files);
        }
    }
}

#[cfg(unix)]
fn begin(files: &CudaFiles) {
    use std::os::unix::process::CommandExt;

    let Ok(program) = std::env::current_exe() else { return };
    let mut command = std::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).envs(files.environment.iter().cloned()).env(BEGUN_AGAIN, "1");
    // Returns only if it fails.
    let _ = command.exec();
}

#[cfg(not(unix))]
fn begin(_: &CudaFiles) {}
