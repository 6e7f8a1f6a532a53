//! Loops over blocks, compiled for several instruction sets and chosen at run time.
//!
//! The bodies are plain Rust that the compiler vectorises. Rust neither fuses nor reorders floating-point operations, so
//! every version gives the same bits; tests hold them against a literal reference.

/// Compiles a body for AVX-512, AVX2, and the target's baseline.
macro_rules! multiversioned {
    ($($(#[$meta:meta])* pub(super) fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        pub(super) fn $name($($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2")]
                fn avx512($($arg: $type),*) {
                    body($($arg),*);
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) {
                    body($($arg),*);
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
                {
                    // SAFETY: the features the function is compiled for were detected.
                    #[expect(unsafe_code, reason = "a call into a function compiled for a detected instruction set")]
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    #[expect(unsafe_code, reason = "a call into a function compiled for a detected instruction set")]
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*);
        }
    )*};
}

pub(super) use multiversioned;
