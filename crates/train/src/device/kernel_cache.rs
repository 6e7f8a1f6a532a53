//! Where compiled kernels and measured choices between them stay, so that a second start is warm, and how devices are
//! used: CubeCL's own settings, made once before any device is opened.

use cubecl::config::cache::CacheConfig;
use cubecl::config::streaming::StreamPolicy;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

/// Settles them; later calls change nothing. A `cubecl.toml` of the user's and CubeCL's variables come first, but for what
/// a run rests on.
pub(super) fn settle() {
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    if matches!(config.environment.path, CacheConfig::Target)
        && let Some(directory) = qwen_tune_weights::user_cache("kernels")
    {
        config.environment.path = CacheConfig::Directory(directory);
    }
    config.compilation.cache = true;
    // Every thread would have a stream and memory of its own, and a step is run by whichever thread of the pool is free.
    config.streaming.policy = StreamPolicy::Single;
    CubeClRuntimeConfig::try_set(config);
}
