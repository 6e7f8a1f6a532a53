//! Whether packing changes anything, seen on the first rows of the recipe's own data.

use std::collections::BTreeMap;

use qwen_tune_data::{AuditLimits, Packing};
use qwen_tune_model::{ComputeDtype, LoraPlan, Training};
use qwen_tune_qwen::memory;
use qwen_tune_train::{PackingDifference, PackingProof, device, packing_tolerance};

use super::{Plan, available_memory, data_fault};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::terminal::{bytes, count};

/// Operations that it may take, two seconds' work of a CPU.
const FLOPS: u64 = 200_000_000_000;
/// Tokens that are laid out, at least and at most.
const TOKENS: (u64, u64) = (256, 512);
/// Memory that the weights may take, at most and as a share of what is free.
const MEMORY: u64 = 4 << 30;
const SHARE: u64 = 2;

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum PackingCheck {
    /// The rows run one by one anyway.
    NotPacked,
    /// It was not looked at, and why.
    Skipped(String),
    /// Packed rows are what each is alone, to rounding.
    Same(PackingDifference),
}

impl Plan {
    /// Runs the first rows packed and alone through a block of each kind, on the CPU in f32.
    ///
    /// # Errors
    /// If they differ by more than rounding explains, or rows or weights cannot be read.
    pub fn check_packing(&self) -> Result<PackingCheck, Diagnostics> {
        if self.recipe.tokens.packing == Packing::None {
            return Ok(PackingCheck::NotPacked);
        }
        let skipped = |reason: String| Ok(PackingCheck::Skipped(reason));
        let Ok(cpu) = device::open("cpu", ComputeDtype::F32) else {
            return skipped("this build has no `cpu` device".to_owned());
        };
        let first = self.data.samples().take(AuditLimits::START.rows as usize);
        let samples = first.flat_map(|row| match row {
            Ok((_, encoded)) => encoded.samples.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        });
        let proof = PackingProof::new(&self.model, samples, self.tokens_to_compare() as usize);
        let proof = proof.map_err(|e| Diagnostics::from(data_fault(&e)))?;
        if proof.rows() < 2 {
            return skipped("there are no two rows to pack".to_owned());
        }
        let (needed, free) = (proof.bytes(), available_memory().unwrap_or(u64::MAX));
        let most = MEMORY.min(free / SHARE);
        if needed > most {
            return skipped(format!("a block of each kind takes {}, of {} at most", bytes(needed), bytes(most)));
        }
        // Weights that will be trained are still the base's.
        let training = match &self.trained.training {
            Training::Lora(plan) => &Training::Lora(LoraPlan { whole: BTreeMap::new(), ..plan.clone() }),
            Training::Full(_) | Training::Nothing => &Training::Nothing,
        };
        let tokens = &self.recipe.tokens;
        let seen = proof
            .run(training, tokens.packing, tokens.max_length, &cpu.device)
            .map_err(|e| Diagnostics::from(Diagnostic::failure_from("load", &e)))?;
        let tolerance = packing_tolerance(&self.model.spec);
        // A difference that is no number is none that rounding explains.
        if seen.largest <= tolerance { Ok(PackingCheck::Same(seen)) } else { Err(leak(&seen, tolerance).into()) }
    }

    /// As many as the time allows.
    fn tokens_to_compare(&self) -> u64 {
        let spec = &self.model.spec;
        let blocks: Vec<usize> = spec.alike().iter().map(|kind| kind[0]).collect();
        let of_a_block: Vec<_> =
            self.model.inventory.iter().filter(|t| t.layer.is_some_and(|l| blocks.contains(&l))).cloned().collect();
        // Packed and alone, a multiplication and an addition for each number.
        let token = 4 * memory::active_parameters(spec, &of_a_block);
        (FLOPS / token.max(1)).clamp(TOKENS.0, TOKENS.1)
    }
}

fn leak(seen: &PackingDifference, tolerance: f32) -> Diagnostic {
    let message = format!(
        "rows that are laid out together change one another: log-probabilities of {} tokens of {} rows differ from those of the rows alone",
        count(seen.tokens as u64),
        count(seen.rows as u64)
    );
    Diagnostic::failure("packing-leaks", message)
        .found(format!("a difference of {:.1e} nats", seen.largest))
        .expected(format!("at most {tolerance:.0e}, which is rounding"))
        .hint("this is a fault of this program, please report it; until then one row at a time is safe: `--set tokens.packing=none --set run.micro_batch=1`")
}
