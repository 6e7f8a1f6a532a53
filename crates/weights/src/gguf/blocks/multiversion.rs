//! Loops over blocks, compiled for several instruction sets and chosen at run time.
//!
//! The bodies are plain Rust that the compiler vectorises. Rust neither fuses nor reorders floating-point operations, so
//! every version gives the same bits; tests hold them against a literal reference.

/// An instruction set that bodies are compiled for.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Baseline,
    Avx2,
    Avx512,
}

/// The best one that the machine has.
#[cfg(target_arch = "x86_64")]
pub(super) fn level() -> Level {
    let detected = if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
    {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") {
        Level::Avx2
    } else {
        Level::Baseline
    };
    #[cfg(test)]
    let detected = detected.min(limit::get());
    detected
}

/// Lets a test have the version of a lesser machine.
#[cfg(all(test, target_arch = "x86_64"))]
pub(super) mod limit {
    use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

    use super::Level;

    pub(crate) const LEVELS: [Level; 3] = [Level::Baseline, Level::Avx2, Level::Avx512];
    static LIMIT: AtomicU8 = AtomicU8::new(2);

    pub(super) fn get() -> Level {
        LEVELS[usize::from(LIMIT.load(SeqCst))]
    }

    /// For all threads; versions do not differ, so other tests need not know.
    pub(crate) fn set(level: Level) {
        LIMIT.store(level as u8, SeqCst);
    }
}

/// What the bodies are told as `SET`: of which instructions they may make use.
pub(super) mod set {
    pub(crate) const BASELINE: u8 = 0;
    #[cfg(target_arch = "x86_64")]
    pub(crate) const AVX2: u8 = 1;
    #[cfg(target_arch = "x86_64")]
    pub(crate) const AVX512: u8 = 2;
}

/// Compiles a body for AVX-512, AVX2, and the target's baseline.
///
/// The body gets `SET`, for the few steps that are written for an instruction set.
macro_rules! multiversioned {
    ($($(#[$meta:meta])* pub(super) fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        pub(super) fn $name($($arg: $type),*) {
            #[inline(always)]
            fn body<const SET: u8>($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::gguf::blocks::multiversion::{Level, set};
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2")]
                fn avx512($($arg: $type),*) {
                    body::<{ set::AVX512 }>($($arg),*);
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) {
                    body::<{ set::AVX2 }>($($arg),*);
                }
                match $crate::gguf::blocks::multiversion::level() {
                    // SAFETY: the features the function is compiled for were detected.
                    #[expect(unsafe_code, reason = "a call into a function compiled for a detected instruction set")]
                    Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    #[expect(unsafe_code, reason = "a call into a function compiled for a detected instruction set")]
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Baseline => {}
                }
            }
            body::<{ $crate::gguf::blocks::multiversion::set::BASELINE }>($($arg),*);
        }
    )*};
}

pub(super) use multiversioned;
