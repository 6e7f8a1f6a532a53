//! How many threads a run uses: the size of rayon's pool, on which products, kernels, encoding and quantisation run.

use qwen_tune_qwen::Auto;
use rayon::ThreadPoolBuilder;

/// More than any machine has; a typing error would otherwise start them all.
pub const MOST_THREADS: usize = 1024;

/// What rayon itself looks at where nobody names a number.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// How many there are, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Threads {
    /// Their number.
    pub count: usize,
    /// For `plan`.
    pub reason: String,
}

/// Makes the pool; `auto` and 0 take all cores that the process may use. Has to come before anything that runs in
/// parallel: the first pool stays, and later calls only say how large it is.
pub fn begin(wanted: Auto<usize>) -> Threads {
    let wanted = wanted.value().unwrap_or(0);
    // Refused where there is a pool already: another command of the same process, or a test, made it.
    let made = ThreadPoolBuilder::new().num_threads(wanted).build_global().is_ok();
    let count = rayon::current_num_threads();
    let by_variable = std::env::var(VARIABLE).is_ok_and(|value| value.parse() == Ok(count));
    let reason = match wanted {
        0 if by_variable => format!("`{VARIABLE}` says so"),
        0 => "all cores that this process may use".to_owned(),
        _ if made || wanted == count => "as the recipe says".to_owned(),
        _ => "as this process began".to_owned(),
    };
    Threads { count, reason }
}
