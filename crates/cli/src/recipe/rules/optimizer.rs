//! Numbers of `[optimizer]` with which nothing is learnt, or everything is lost.

use super::Context;
use crate::diagnostic::{Diagnostic, Diagnostics};

/// Above this AdamW destroys a pre-trained model, adapter or not.
const SUSPICIOUS_RATE: f64 = 1e-2;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let optimizer = &context.recipe.optimizer;
    let rate = optimizer.learning_rate;
    if !(rate > 0.0 && rate.is_finite()) {
        said.push(context.out_of_range(
            "optimizer.learning_rate",
            rate,
            "a number above 0; 2e-4 is usual for LoRA, 2e-5 for `[full]`",
        ));
    } else if rate > SUSPICIOUS_RATE {
        said.push(
            context
                .warning(
                    "high-learning-rate",
                    "optimizer.learning_rate",
                    format!("a learning rate of {rate} is very high"),
                )
                .expected("about 2e-4 for LoRA, 2e-5 for `[full]`"),
        );
    }
    if context.recipe.full.is_some() && !context.doc.contains("optimizer.learning_rate") {
        said.push(
            Diagnostic::warning(
                "adapter-learning-rate",
                format!("the default learning rate of {rate} is one for adapters"),
            )
            .at(context.doc.key_span_of("full"))
            .label("trains the model's own weights")
            .hint("set `optimizer.learning_rate`; 2e-5 is usual here"),
        );
    }
    if !(optimizer.weight_decay >= 0.0 && optimizer.weight_decay.is_finite()) {
        said.push(context.out_of_range("optimizer.weight_decay", optimizer.weight_decay, "a number from 0"));
    }
    for (key, beta) in [("optimizer.beta1", optimizer.beta1), ("optimizer.beta2", optimizer.beta2)] {
        if !(0.0..1.0).contains(&beta) {
            said.push(context.out_of_range(key, beta, "a number from 0 up to, not including, 1"));
        }
    }
    if !(optimizer.eps > 0.0 && optimizer.eps.is_finite()) {
        said.push(context.out_of_range("optimizer.eps", optimizer.eps, "a small number above 0, such as 1e-8"));
    }
    if let Some(coefficient) = context.recipe.objective.router_aux_loss_coef
        && !(coefficient >= 0.0 && coefficient.is_finite())
    {
        said.push(context.out_of_range(
            "objective.router_aux_loss_coef",
            coefficient,
            "a number from 0; 0.001 is usual",
        ));
    }
    if optimizer.max_grad_norm.is_nan() || optimizer.max_grad_norm < 0.0 {
        said.push(context.out_of_range(
            "optimizer.max_grad_norm",
            optimizer.max_grad_norm,
            "a number above 0, or 0 to never clip",
        ));
    }
}
