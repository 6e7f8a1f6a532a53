//! The model card, `README.md`: what a model was made from, how, with what result, and what was proven of its files.

use std::fmt::Write as _;

use qwen_tune_weights::lock::Lock;

/// What a card says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Card {
    /// Name of the model.
    pub name: String,
    /// The base as people know it: its id, or the last part of its path.
    pub base: String,
    /// Whether that is an id of the hub.
    pub is_on_hub: bool,
    /// What the base's files were.
    pub lock: Option<Lock>,
    /// Licence of the base, as its own card names it.
    pub license: Option<String>,
    /// Whether the files are GGUF.
    pub is_gguf: bool,
    /// How it was trained: one line, such as `LoRA, rank 16`; none where a model was only written in another form.
    pub method: Option<String>,
    /// Sources of the training rows, and how many rows.
    pub data: Vec<(String, u64)>,
    /// The recipe's text.
    pub recipe: Option<String>,
    /// Losses on the way.
    pub losses: Option<Losses>,
    /// The table of the files and what was measured of them, in Markdown; none where nothing was verified.
    pub proof: Option<String>,
    /// Lines that run it, in a shell.
    pub usage: Vec<String>,
}

/// Losses of a run, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    /// Updates made.
    pub steps: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Of the last step.
    pub last: Option<f64>,
    /// Held-out loss before the first step and after the last.
    pub held_out: Option<(f64, f64)>,
}

impl Card {
    /// The card's text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::from("---\n");
        // A directory means nothing to others.
        if self.is_on_hub {
            let _ = writeln!(out, "base_model: {}", self.base);
        }
        if let Some(license) = &self.license {
            let _ = writeln!(out, "license: {license}");
        }
        let _ = writeln!(out, "pipeline_tag: text-generation");
        let library = if self.is_gguf { "gguf" } else { "transformers" };
        let _ = writeln!(out, "library_name: {library}\ntags:\n- qwen-tune\n---\n\n# {}\n", self.name);
        let base = &self.base;
        let how = match &self.method {
            Some(method) => format!("fine-tuned ({method})"),
            None => "converted".to_owned(),
        };
        let program = concat!("[qwen-tune](https://crates.io/crates/qwen-tune) ", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(out, "`{base}`, {how} with {program}.");
        self.put_usage(&mut out);
        self.put_proof(&mut out);
        self.put_training(&mut out);
        self.put_base(&mut out);
        out
    }

    fn put_usage(&self, out: &mut String) {
        if !self.usage.is_empty() {
            let _ = writeln!(out, "\n## Use\n\n```sh\n{}\n```", self.usage.join("\n"));
        }
    }

    fn put_proof(&self, out: &mut String) {
        let _ = writeln!(out, "\n## Verified\n");
        match &self.proof {
            Some(proof) => out.push_str(proof),
            None => out.push_str("These files were not compared with the trained model (`verify = false`).\n"),
        }
    }

    fn put_training(&self, out: &mut String) {
        if self.losses.is_none() && self.recipe.is_none() && self.data.is_empty() {
            return;
        }
        let _ = writeln!(out, "\n## Training\n");
        for (source, rows) in &self.data {
            let _ = writeln!(out, "- data: `{source}`, {rows} rows");
        }
        if let Some(losses) = &self.losses {
            let _ = writeln!(out, "- {} steps, {} tokens", losses.steps, losses.tokens);
            if let Some(last) = losses.last {
                let _ = writeln!(out, "- loss of the last step: {last:.4}");
            }
            if let Some((before, after)) = losses.held_out {
                let _ = writeln!(
                    out,
                    "- held-out loss: {before:.4} before, {after:.4} after (perplexity {:.3} to {:.3})",
                    before.exp(),
                    after.exp()
                );
            }
        }
        if let Some(recipe) = &self.recipe {
            let recipe = without_places(recipe);
            let fence = fence_for(&recipe);
            let _ = writeln!(out, "\n{fence}toml\n{}\n{fence}", recipe.trim_end());
        }
    }

    fn put_base(&self, out: &mut String) {
        let Some(lock) = &self.lock else { return };
        let _ = writeln!(out, "\n## The base\n\nSHA-256 of the files that it was made from:\n\n```");
        for (name, digest) in &lock.files {
            let _ = writeln!(out, "{digest}  {name}");
        }
        out.push_str("```\n");
    }
}

/// The recipe with the last parts alone of paths from the root or from home: where a file lay on the author's machine helps
/// nobody who reads the card.
fn without_places(recipe: &str) -> String {
    let place = |text: &str| text.starts_with('/') || text.starts_with("~/");
    let last = |text: &str| text.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let shown = |(index, text): (usize, &str)| match index % 2 == 1 && place(text) {
        true => format!(".../{}", last(text)),
        false => text.to_owned(),
    };
    let line = |line: &str| line.split('"').enumerate().map(shown).collect::<Vec<_>>().join("\"");
    recipe.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Backticks that the text does not hold.
fn fence_for(text: &str) -> String {
    let mut fence = "```".to_owned();
    while text.contains(&fence) {
        fence.push('`');
    }
    fence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_the_authors_machine_stay_out() {
        let recipe = "base = \"/home/me/models/Qwen3\"  # \"ours\"\npath = [\"~/rows/a.parquet\", \"data/b.parquet\"]";
        assert_eq!(
            without_places(recipe),
            "base = \".../Qwen3\"  # \"ours\"\npath = [\".../a.parquet\", \"data/b.parquet\"]"
        );
    }

    #[test]
    fn a_card_says_what_is_known_and_nothing_else() {
        let card = Card { name: "mine".to_owned(), base: "Qwen3-0.6B".to_owned(), ..Card::default() };
        let text = card.text();
        assert!(text.starts_with("---\npipeline_tag: text-generation\n"), "a directory is no base_model: {text}");
        assert!(text.contains("`Qwen3-0.6B`, converted with"));
        assert!(text.contains("were not compared"));
        assert!(!text.contains("## Training") && !text.contains("## The base"));
        let known = Card {
            base: "Qwen/Qwen3-0.6B".to_owned(),
            is_on_hub: true,
            license: Some("apache-2.0".to_owned()),
            method: Some("LoRA, rank 4".to_owned()),
            proof: Some("| file |\n".to_owned()),
            losses: Some(Losses { steps: 3, tokens: 600, last: Some(1.5), held_out: Some((2.0, 1.0)) }),
            recipe: Some("base = \"```\"\n".to_owned()),
            ..card
        };
        let text = known.text();
        assert!(text.contains("base_model: Qwen/Qwen3-0.6B\nlicense: apache-2.0\n"));
        assert!(text.contains("`Qwen/Qwen3-0.6B`, fine-tuned (LoRA, rank 4) with"));
        assert!(text.contains("- held-out loss: 2.0000 before, 1.0000 after (perplexity 7.389 to 2.718)"));
        assert!(text.contains("\n````toml\nbase = \"```\"\n````\n"));
    }
}
