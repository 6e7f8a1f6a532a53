//! What the device `cuda` needs on the machine it runs on, and where it is: NVIDIA's driver, NVRTC, and the headers that
//! kernels include. Nothing is opened: files are looked for where the loader, cubecl-cuda and pip put or seek them.
//!
//! | what | who seeks it | where |
//! |---|---|---|
//! | `libcuda.so.1` | cudarc, by name | the loader's directories: it comes with the driver |
//! | `libnvrtc.so.13` | cudarc, by name | the loader's directories, so `LD_LIBRARY_PATH` before the process begins |
//! | headers | cubecl-cuda, as `--include-path` of NVRTC | `include` and `include/cccl` of `$CUDA_PATH`, or of a toolkit |
//!
//! pip's wheels lie in none of these places, so [`CudaFiles::environment`] says with which variables they are found; a
//! process that lacks them begins again with them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The newest NVRTC that every driver of CUDA 13 takes the output of: a driver refuses what a newer one than its own wrote.
const RELEASE: &str = "13.0.*";
/// Wheels that hold NVRTC and all headers that kernels include.
const WHEELS: [&str; 4] = ["nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-cuda-cccl"];
/// Where those of CUDA 13 put them, below a directory of Python packages.
const WHEEL_ROOT: &str = "nvidia/cu13";
/// Headers that kernels include, and the wheel that brings each.
const HEADERS: [(&str, &str); 5] = [
    ("cuda_fp16.h", "nvidia-cuda-runtime"),
    ("cuda_bf16.h", "nvidia-cuda-runtime"),
    ("mma.h", "nvidia-cuda-runtime"),
    ("crt/mma.h", "nvidia-cuda-crt"),
    ("cuda/barrier", "nvidia-cuda-cccl"),
];
/// Variable that says that the process has begun again already.
pub const BEGUN_AGAIN: &str = "QWEN_TUNE_CUDA_FOUND";

/// Where things may lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// Directories that the loader looks through.
    pub libraries: Vec<PathBuf>,
    /// Libraries that the loader's cache lists.
    pub cached: Vec<PathBuf>,
    /// What cubecl-cuda takes for the CUDA toolkit.
    pub toolkit: Option<PathBuf>,
    /// Directories of Python packages, the most particular first.
    pub packages: Vec<PathBuf>,
    /// Where the suggested command puts wheels; one of `packages`.
    pub own: Option<PathBuf>,
    /// `LD_LIBRARY_PATH` as it is.
    pub library_path: OsString,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CudaFiles {
    /// The driver's library.
    pub driver: Option<PathBuf>,
    /// NVRTC.
    pub nvrtc: Option<PathBuf>,
    /// The directory with all headers, to which `include` is added.
    pub headers: Option<PathBuf>,
    /// NCCL under a name that cudarc asks for; only several devices in one run need it.
    pub nccl: Option<PathBuf>,
    /// Variables with which a process finds what lies in wheels; empty where it does already, or would not.
    pub environment: Vec<(&'static str, OsString)>,
    /// Wheels whose headers are missing where least are.
    pub missing_headers: Vec<&'static str>,
    /// Where the suggested command puts wheels.
    pub own: Option<PathBuf>,
}

impl CudaFiles {
    /// Looks in these places.
    #[must_use]
    pub fn find(places: &Places) -> Self {
        let driver = places.library("cuda");
        let roots: Vec<PathBuf> = places.packages.iter().map(|packages| packages.join(WHEEL_ROOT)).collect();
        let mut environment = Vec::new();

        let mut nvrtc = places.library("nvrtc");
        if nvrtc.is_none()
            && let Some((root, file)) = roots.iter().find_map(|root| Some((root, in_wheel(root)?)))
        {
            let mut paths = vec![root.join("lib")];
            paths.extend(std::env::split_paths(&places.library_path).filter(|path| !path.as_os_str().is_empty()));
            if let Ok(joined) = std::env::join_paths(paths) {
                environment.push(("LD_LIBRARY_PATH", joined));
                nvrtc = Some(file);
            }
        }
        let lacks = |root: &Path| missing_headers(root);
        let mut headers = places.toolkit.clone().filter(|toolkit| lacks(toolkit).is_empty());
        if headers.is_none()
            && let Some(root) = roots.iter().find(|root| lacks(root).is_empty())
        {
            environment.push(("CUDA_PATH", root.clone().into_os_string()));
            headers = Some(root.clone());
        }
        let missing_headers = match &headers {
            Some(_) => Vec::new(),
            // Of the place that lacks least.
            None => {
                roots.iter().chain(&places.toolkit).map(|root| lacks(root)).min_by_key(Vec::len).unwrap_or_else(|| {
                    let mut all: Vec<&str> = HEADERS.iter().map(|(_, wheel)| *wheel).collect();
                    all.dedup();
                    all
                })
            }
        };
        let nccl = places.library("nccl");
        Self { driver, nvrtc, headers, nccl, environment, missing_headers, own: places.own.clone() }
    }

    /// Looks on this machine.
    #[must_use]
    pub fn here() -> Self {
        Self::find(&Places::here())
    }

    /// What kernels cannot be compiled without and is not there, in words; empty where all is.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.nvrtc.is_none() {
            missing.push("NVRTC (`libnvrtc.so.13`)".to_owned());
        }
        if self.headers.is_none() {
            missing.push(format!("CUDA's headers (those of {})", self.missing_headers.join(", ")));
        }
        missing
    }

    /// The command that sets [`CudaFiles::environment`] in a shell; `None` where nothing has to be set.
    #[must_use]
    pub fn settings(&self) -> Option<String> {
        let set = |(name, value): &(&str, OsString)| format!("{name}={}", value.to_string_lossy());
        let all: Vec<String> = self.environment.iter().map(set).collect();
        (!all.is_empty()).then(|| format!("export {}", all.join(" ")))
    }

    /// The command that gets it.
    #[must_use]
    pub fn command(&self) -> String {
        let wheels: Vec<String> = WHEELS.iter().map(|wheel| format!("\"{wheel}=={RELEASE}\"")).collect();
        let target = self.own.as_ref().map_or(String::new(), |own| format!("--target {} ", own.display()));
        format!("python3 -m pip install {target}{}", wheels.join(" "))
    }
}

impl Places {
    /// Of this machine and this process.
    #[must_use]
    pub fn here() -> Self {
        let library_path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let mut libraries: Vec<PathBuf> = std::env::split_paths(&library_path).collect();
        libraries.extend(["/lib", "/usr/lib", "/lib64", "/usr/lib64"].map(PathBuf::from));
        let own = data_home().map(|data| data.join("qwen-tune/cuda"));
        Self {
            libraries,
            cached: loader_cache(Path::new("/etc/ld.so.cache")),
            toolkit: toolkit(),
            packages: own.iter().cloned().chain(python_packages()).collect(),
            own,
            library_path,
        }
    }

    /// The library cudarc finds as `name`. It asks for more names, of which these are the ones there are on Linux.
    fn library(&self, name: &str) -> Option<PathBuf> {
        const ENDINGS: [&str; 5] = [".so", ".so.13", ".so.12", ".so.11", ".so.1"];
        let names = ENDINGS.map(|ending| format!("lib{name}{ending}"));
        let listed = |wanted: &String| {
            let mut there = self.libraries.iter().map(|directory| directory.join(wanted));
            there.find(|path| path.is_file()).or_else(|| {
                let named = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_str() == Some(wanted));
                self.cached.iter().find(named).cloned()
            })
        };
        names.iter().find_map(listed)
    }
}

fn in_wheel(root: &Path) -> Option<PathBuf> {
    Some(root.join("lib/libnvrtc.so.13")).filter(|file| file.is_file())
}

/// Wheels whose headers are missing below `root/include` and `root/include/cccl`, the two places NVRTC is told of.
fn missing_headers(root: &Path) -> Vec<&'static str> {
    let include = root.join("include");
    let there = |header: &str| include.join(header).is_file() || include.join("cccl").join(header).is_file();
    let mut missing: Vec<&str> = HEADERS.iter().filter(|(header, _)| !there(header)).map(|(_, wheel)| *wheel).collect();
    missing.dedup();
    missing
}

/// The toolkit as cubecl-cuda 0.11.3 finds it (`install::cuda_path`).
fn toolkit() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CUDA_PATH") {
        return Some(path.into());
    }
    let known = ["/usr/local/cuda", "/opt/cuda"].into_iter().map(Path::new).find(|path| path.exists());
    known.map(Path::to_owned).or_else(|| Path::new("/usr/bin/nvcc").exists().then(|| PathBuf::from("/usr")))
}

/// Libraries in glibc's cache: its strings are paths, each ended by a zero byte.
fn loader_cache(file: &Path) -> Vec<PathBuf> {
    let bytes = std::fs::read(file).unwrap_or_default();
    let strings = bytes.split(|&byte| byte == 0).filter(|string| string.first() == Some(&b'/') && string.len() > 8);
    strings.filter_map(|string| std::str::from_utf8(string).ok()).map(PathBuf::from).collect()
}

/// Directories of Python packages: of the active environment, of the `python3` on the path, the user's, the system's.
fn python_packages() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(var).collect();
    for directory in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        let python = directory.join("python3");
        if python.exists() {
            // As it is named, and one link further: the interpreter of an environment is a link out of it.
            let linked = std::fs::read_link(&python).ok().filter(|link| link.is_absolute());
            let parents = [Some(python), linked].into_iter().flatten();
            prefixes.extend(parents.filter_map(|python| Some(python.parent()?.parent()?.to_owned())));
        }
    }
    prefixes.extend(var("HOME").map(|home| home.join(".local")));
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    let mut packages = Vec::new();
    for library in prefixes.iter().map(|prefix| prefix.join("lib")) {
        let mut versions: Vec<PathBuf> = std::fs::read_dir(&library)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3")))
            .collect();
        versions.sort();
        for version in versions.into_iter().rev() {
            for name in ["site-packages", "dist-packages"].map(|name| version.join(name)) {
                if name.is_dir() && !packages.contains(&name) {
                    packages.push(name);
                }
            }
        }
    }
    packages
}

fn data_home() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    var("XDG_DATA_HOME").or_else(|| var("HOME").map(|home| home.join(".local/share")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn put(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
    }

    const ALL_HEADERS: [&str; 5] = [
        "include/cuda_fp16.h",
        "include/cuda_bf16.h",
        "include/mma.h",
        "include/crt/mma.h",
        "include/cccl/cuda/barrier",
    ];

    struct Machine(PathBuf);

    impl Machine {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("qwen-tune-cuda-files-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&root);
            Self(root)
        }

        fn places(&self) -> Places {
            Places {
                libraries: vec![self.0.join("lib")],
                cached: Vec::new(),
                toolkit: Some(self.0.join("cuda")),
                packages: vec![self.0.join("own"), self.0.join("site")],
                own: Some(self.0.join("own")),
                library_path: "/somewhere".into(),
            }
        }

        fn find(&self) -> CudaFiles {
            CudaFiles::find(&self.places())
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_bare_machine_lacks_everything_and_is_told_one_command() {
        let machine = Machine::new("bare");
        let found = machine.find();
        assert_eq!((found.driver.clone(), found.environment.len()), (None, 0));
        assert_eq!(found.missing().len(), 2);
        let command = found.command();
        assert!(command.starts_with("python3 -m pip install --target "), "{command}");
        assert!(WHEELS.iter().all(|wheel| command.contains(wheel)), "{command}");
    }

    #[test]
    fn a_toolkit_and_a_library_the_loader_knows_need_no_variables() {
        let machine = Machine::new("toolkit");
        put(&machine.0, &["lib/libcuda.so.1", "other/libnvrtc.so.12"]);
        put(&machine.0.join("cuda"), &ALL_HEADERS);
        let places = Places { cached: vec![machine.0.join("other/libnvrtc.so.12")], ..machine.places() };
        let found = CudaFiles::find(&places);
        assert_eq!(found.driver, Some(machine.0.join("lib/libcuda.so.1")));
        assert_eq!(found.headers, Some(machine.0.join("cuda")));
        assert_eq!((found.missing(), found.environment), (Vec::<String>::new(), Vec::new()));
    }

    #[test]
    fn wheels_are_found_by_variables() {
        let machine = Machine::new("wheels");
        let root = machine.0.join("site").join(WHEEL_ROOT);
        put(&root, &["lib/libnvrtc.so.13"]);
        put(&root, &ALL_HEADERS);
        // A toolkit without all headers is passed over.
        put(&machine.0.join("cuda"), &ALL_HEADERS[..2]);
        let found = machine.find();
        assert_eq!(found.missing(), Vec::<String>::new());
        let libraries = std::env::join_paths([root.join("lib"), "/somewhere".into()]).unwrap();
        assert_eq!(found.environment, [("LD_LIBRARY_PATH", libraries), ("CUDA_PATH", root.into())]);
    }

    #[test]
    fn the_wheel_that_is_missing_is_named() {
        let machine = Machine::new("part");
        let root = machine.0.join("own").join(WHEEL_ROOT);
        put(&root, &["lib/libnvrtc.so.13"]);
        put(&root, &ALL_HEADERS);
        std::fs::remove_file(root.join("include/crt/mma.h")).unwrap();
        let found = machine.find();
        assert_eq!(found.missing(), ["CUDA's headers (those of nvidia-cuda-crt)"]);
    }

    #[test]
    fn the_loaders_cache_is_read_as_strings() {
        let machine = Machine::new("cache");
        put(&machine.0, &["ld.so.cache"]);
        let bytes = b"glibc-ld.so.cache1.1\x00\x01/\0libc.so.6\0/usr/lib/libc.so.6\0/opt/lib/libnvrtc.so.13\0";
        std::fs::write(machine.0.join("ld.so.cache"), bytes).unwrap();
        let found = loader_cache(&machine.0.join("ld.so.cache"));
        assert_eq!(found, [PathBuf::from("/usr/lib/libc.so.6"), PathBuf::from("/opt/lib/libnvrtc.so.13")]);
    }
}
