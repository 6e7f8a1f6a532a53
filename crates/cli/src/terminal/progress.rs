//! A run as it is watched: a bar on a terminal, a line now and then in a log, one JSON object an event with `--json`.

use std::io;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use qwen_tune_train::{BadStep, Ending, Evaluation, Event, OnBadStep, Outcome, Sink, Step};

use super::{Printer, bytes, count, duration, rate, short_count};

/// A log gets a line at least this often.
const QUIET_FOR: Duration = Duration::from_secs(10);

/// Shows a run's events to a person.
#[derive(Debug)]
pub struct Progress {
    printer: Printer,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    /// Moving average: a single step's speed jumps with the length of its rows.
    speed: Option<f64>,
    first_loss: Option<f64>,
    last_evaluation: Option<Evaluation>,
    first_evaluation: Option<Evaluation>,
}

impl Progress {
    /// A listener that prints through this printer.
    pub fn new(printer: Printer) -> Self {
        Self {
            printer,
            bar: None,
            last_line: None,
            speed: None,
            first_loss: None,
            last_evaluation: None,
            first_evaluation: None,
        }
    }

    fn started(&mut self, step: u64, total_steps: u64, trained_parameters: usize) {
        let from = if step == 0 { String::new() } else { format!(", going on after step {step}") };
        self.printer.note(&format!(
            "training {} parameters for {} steps{from}",
            short_count(trained_parameters as u64),
            count(total_steps.saturating_sub(step)),
        ));
        if self.printer.is_terminal() && !self.printer.is_json() {
            let bar = self.printer.bar(total_steps);
            let template = "{wide_bar:.cyan/blue} {msg}";
            let style = ProgressStyle::with_template(template).expect("invariant: the template is a constant");
            bar.set_style(style.progress_chars("━╸─"));
            bar.set_position(step);
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, step: &Step) {
        self.first_loss.get_or_insert(step.loss);
        let speed = self.speed.map_or(step.tokens_per_second, |speed| 0.8 * speed + 0.2 * step.tokens_per_second);
        self.speed = Some(speed);
        let figures = figures(step, speed);
        match &self.bar {
            Some(bar) => {
                bar.set_position(step.step);
                bar.set_message(format!("{}/{}  {figures}", step.step, step.total_steps));
            }
            None if self.is_due(step) => {
                self.last_line = Some(Instant::now());
                let width = step.total_steps.to_string().len();
                self.printer.note(&format!("step {:>width$}/{}  {figures}", step.step, step.total_steps));
            }
            None => {}
        }
    }

    /// In a log: the first and the last step, every tenth of the run, and whenever it was quiet for long.
    fn is_due(&self, step: &Step) -> bool {
        let tenth = step.total_steps.div_ceil(10).max(1);
        let quiet = self.last_line.is_none_or(|at| at.elapsed() >= QUIET_FOR);
        quiet || step.step == 1 || step.step == step.total_steps || step.step.is_multiple_of(tenth)
    }

    fn bad_step(&self, bad: &BadStep) {
        // What stops the run is told by its error.
        if bad.action == OnBadStep::Skip {
            self.printer.warn(&format!(
                "step {} was not applied: loss {:.4}, gradient norm {:.4}; its rows are in {}",
                count(bad.step),
                bad.loss,
                bad.grad_norm,
                bad.file.display(),
            ));
        }
    }

    fn evaluation(&mut self, evaluation: &Evaluation) {
        let change = match &self.first_evaluation {
            Some(first) if first.step < evaluation.step => {
                format!("  ({:+.4} since step {})", evaluation.loss - first.loss, first.step)
            }
            _ => String::new(),
        };
        self.printer.note(&format!(
            "eval at step {}  loss {:.4}  perplexity {}  {} tokens{change}",
            evaluation.step,
            evaluation.loss,
            perplexity(evaluation.perplexity),
            count(evaluation.tokens as u64),
        ));
        self.first_evaluation.get_or_insert_with(|| evaluation.clone());
        self.last_evaluation = Some(evaluation.clone());
    }

    fn finished(&mut self, outcome: &Outcome) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let how = match outcome.ending {
            Ending::Completed => "finished",
            Ending::EarlyStop => "stopped early: held-out loss no longer falls",
            Ending::Interrupted => "interrupted; `--resume` goes on from here",
        };
        let loss = match (self.first_loss, outcome.loss) {
            (Some(first), Some(last)) => format!("  loss {first:.4} -> {last:.4}"),
            _ => String::new(),
        };
        let skipped = match outcome.skipped {
            0 => String::new(),
            skipped => format!(" ({} of them not applied)", count(skipped)),
        };
        let peak = outcome.peak_memory.map(|peak| format!("  peak {}", bytes(peak))).unwrap_or_default();
        self.printer.note(&format!(
            "{how}  {} steps{skipped}  {} tokens  {}{loss}{peak}",
            count(outcome.step),
            count(outcome.tokens),
            duration(outcome.seconds),
        ));
    }
}

impl Sink for Progress {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        match event {
            Event::Started { step, total_steps, trained_parameters } => {
                self.started(*step, *total_steps, *trained_parameters);
            }
            Event::Step(step) => self.step(step),
            Event::BadStep(bad) => self.bad_step(bad),
            Event::Eval(evaluation) => self.evaluation(evaluation),
            Event::Saved { step, path } => {
                // Every checkpoint in a log, none on a terminal: the bar is what is watched there.
                if self.bar.is_none() {
                    self.printer.note(&format!("saved step {step} to {}", path.display()));
                }
            }
            Event::OutOfMemory { step, micro_batch, recompute, ffn_chunk } => {
                let chunk = ffn_chunk.map_or(String::new(), |tokens| format!(" in chunks of {tokens} tokens"));
                self.printer.warn(&format!(
                    "the device's memory ran out in step {}: made again, from now on with a micro-batch of {micro_batch} \
                     and {recompute} blocks run again{chunk}; the result does not depend on it",
                    count(*step)
                ));
            }
            Event::Warned { message } => self.printer.warn(message),
            Event::Exported { path } => self.printer.note(&format!("exported to {}", path.display())),
            Event::Finished(outcome) => self.finished(outcome),
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // A run that failed leaves no half-drawn bar above its error.
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn figures(step: &Step, speed: f64) -> String {
    let eta = step.eta_seconds.map(|seconds| format!("  eta {}", duration(seconds))).unwrap_or_default();
    format!("loss {:.4}  lr {}  {} tok/s{eta}", step.loss, rate(step.learning_rate), count(speed.round() as u64))
}

fn perplexity(value: f64) -> String {
    if value < 1e6 { format!("{value:.2}") } else { format!("{value:.2e}") }
}

/// Every event as one JSON object a line on stdout.
#[derive(Debug)]
pub struct JsonLines {
    printer: Printer,
}

impl JsonLines {
    /// A listener that prints through this printer.
    pub fn new(printer: Printer) -> Self {
        Self { printer }
    }
}

impl Sink for JsonLines {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.printer.json(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(number: u64, total: u64) -> Step {
        Step {
            step: number,
            total_steps: total,
            loss: 2.10339,
            learning_rate: 2e-4,
            grad_norm: 1.5,
            tokens: 600,
            trained_tokens: 200,
            tokens_per_second: 1234.4,
            seconds: 0.5,
            data_seconds: 0.0,
            epoch: 0.1,
            eta_seconds: Some(42.3),
            experts: None,
        }
    }

    #[test]
    fn a_line_has_loss_rate_speed_and_eta() {
        assert_eq!(figures(&step(10, 100), 1234.4), "loss 2.1034  lr 2.0e-4  1,234 tok/s  eta 0:42");
    }

    #[test]
    fn a_log_hears_the_first_the_last_and_every_tenth_step() {
        let mut progress = Progress::new(Printer::new(true));
        progress.last_line = Some(Instant::now());
        let heard: Vec<u64> = (1..=100).filter(|number| progress.is_due(&step(*number, 100))).collect();
        assert_eq!(heard, [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
        let heard: Vec<u64> = (1..=3).filter(|number| progress.is_due(&step(*number, 3))).collect();
        assert_eq!(heard, [1, 2, 3]);
    }

    #[test]
    fn a_huge_perplexity_stays_short() {
        assert_eq!(perplexity(8.166), "8.17");
        assert_eq!(perplexity(f64::INFINITY), "inf");
    }
}
