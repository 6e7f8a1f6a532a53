use super::*;

/// A proof with a base of perplexity 4, and a file of that perplexity whose trained model has 2.
fn proof(base: Option<f64>, perplexity: f64) -> Option<Diagnostic> {
    let fidelity = Fidelity {
        tokens: 100,
        mean_kl: 0.1,
        max_kl: 0.2,
        max_logprob_difference: 1.0,
        top1_agreement: 0.9,
        reference_perplexity: 2.0,
        perplexity,
    };
    let proof = Proof {
        program: String::new(),
        rows: String::new(),
        tokens: 100,
        base_perplexity: base,
        trained_perplexity: None,
        files: Vec::new(),
    };
    proof.lost_training("m-Q4_0.gguf", &fidelity)
}

#[test]
fn training_that_is_rounded_away_is_told() {
    // Half of a gain of ln 2 is kept at a perplexity of 2 sqrt 2.
    assert!(proof(Some(4.0), 2.82).is_none());
    let told = proof(Some(4.0), 2.83).expect("a warning").message;
    assert!(told.contains("keeps 49.9% of what training gained"), "{told}");
    let worse = proof(Some(4.0), 5.0).expect("a warning").message;
    assert!(worse.contains("keeps 0.0%"), "{worse}");
    // Nothing to keep, and nothing known of the base.
    assert!(proof(Some(2.03), 5.0).is_none());
    assert!(proof(Some(1.5), 5.0).is_none());
    assert!(proof(None, 5.0).is_none());
}
