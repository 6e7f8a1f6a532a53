//! What an audit finds: each finding on rows that show it, and nothing on rows that do not.

use std::sync::Arc;

use proptest::prelude::*;
use qwen_tune_data::{
    AuditCode, AuditLimits, Dataset, Encoder, LossOn, Overlong, SourceAudit, SourceConfig, SpecialTokens, TokensConfig,
    Verdict,
};
use serde_json::{Value, json};

use crate::fixture::{CHATML, GENERATION, VOCAB, encoder, encoder_with, model_dir, write};

/// ChatML that marks answers and knows no tool results.
const DEAF_TO_TOOLS: &str = "\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}";

fn audit(encoder: Encoder, rows: &[Value]) -> SourceAudit {
    let dir = tempfile::tempdir().unwrap();
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let source = SourceConfig::new(write(dir.path(), "rows.jsonl", &text).to_str().unwrap());
    let data = Dataset::open(&[source], Arc::new(encoder), &[]).unwrap();
    data.audit(AuditLimits::START).unwrap().sources.remove(0)
}

/// Code, whether it refuses, and rows of each finding.
fn found(encoder: Encoder, rows: &[Value]) -> Vec<(&'static str, bool, u64)> {
    audit(encoder, rows).findings.iter().map(|f| (f.code.name(), f.refuses, f.rows)).collect()
}

fn chat(turns: &[(&str, &str)]) -> Value {
    let messages: Vec<_> = turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    json!({ "messages": messages })
}

/// Rows that only differ in a number, so that they are not all the same.
fn rows(count: usize, row: impl Fn(usize) -> Value) -> Vec<Value> {
    (0..count).map(row).collect()
}

fn good(i: usize) -> Value {
    chat(&[("user", &format!("question {i}")), ("assistant", &format!("answer {i}"))])
}

/// An encoder whose tokenizer has these settings.
fn with_settings(settings: Value) -> Encoder {
    Encoder::from_dir(model_dir(&settings).path(), &TokensConfig::default(), VOCAB).unwrap()
}

#[test]
fn ordinary_rows_have_nothing_to_find() {
    let odd_but_right = [
        chat(&[("system", "4"), ("user", "4"), ("assistant", "4")]),
        chat(&[("user", "what does <think> do?"), ("assistant", "<think>\nhm\n</think>\n\nit opens a block")]),
        chat(&[("user", "  x \n y "), ("tool", "21 degrees"), ("assistant", "ok"), ("user", "q"), ("assistant", "a")]),
    ];
    for template in [CHATML, GENERATION] {
        assert_eq!(found(encoder(template), &rows(20, good)), []);
        let loss_on_all = TokensConfig { loss_on: LossOn::All, ..TokensConfig::default() };
        assert_eq!(found(encoder_with(template, loss_on_all), &rows(20, good)), []);
    }
    assert_eq!(found(encoder(GENERATION), &odd_but_right), []);
    assert_eq!(found(encoder(CHATML), &rows(9, |i| json!({"prompt": format!("{i}?"), "completion": " 4"}))), []);
    assert_eq!(found(encoder(CHATML), &rows(9, |i| json!({"text": format!("speaking of <think> {i}")}))), []);
    assert_eq!(found(encoder(CHATML), &rows(9, |i| json!({"input_ids": [i, 2, 3, 4]}))), []);
}

#[test]
fn no_loss_says_why() {
    let unanswered = audit(encoder(CHATML), &[chat(&[("user", "hi")])]);
    assert_eq!(unanswered.findings[0].code, AuditCode::NoLoss);
    assert!(unanswered.findings[0].message.ends_with("no conversation has a turn of the assistant"));
    let masked = audit(encoder(CHATML), &[json!({"input_ids": [1, 2, 3], "labels": [-100, -100, -100]})]);
    assert!(masked.findings[0].message.ends_with("every label is -100"), "{:?}", masked.findings);
    let short = TokensConfig { max_length: 12, ..TokensConfig::default() };
    let cut = audit(encoder_with(CHATML, short), &rows(4, good));
    let codes: Vec<_> = cut.findings.iter().map(|f| f.code).collect();
    assert_eq!(codes, [AuditCode::NoLoss, AuditCode::AllOverlong, AuditCode::AnswersCut]);
    assert!(cut.findings[0].message.ends_with("lies behind `tokens.max_length`"));
    // The cause is told, not its consequence, unless the cause is allowed.
    let told = |allow: &[AuditCode]| cut.verdicts(allow).map(|(f, v)| (f.code, v)).collect::<Vec<_>>();
    assert_eq!(told(&[]), [(AuditCode::AllOverlong, Verdict::Refuse)]);
    assert_eq!(
        told(&[AuditCode::AllOverlong]),
        [
            (AuditCode::NoLoss, Verdict::Refuse),
            (AuditCode::AllOverlong, Verdict::Allowed),
            (AuditCode::AnswersCut, Verdict::Warn)
        ]
    );
}

#[test]
fn less_than_a_hundredth_is_little_loss() {
    let config = TokensConfig { max_length: 10_000, ..TokensConfig::default() };
    let row =
        |length: usize| move |i: usize| chat(&[("user", &format!("{i}{}", "z".repeat(length))), ("assistant", "a")]);
    assert_eq!(found(encoder_with(GENERATION, config.clone()), &rows(3, row(1000))), [("little-loss", true, 3)]);
    assert_eq!(found(encoder_with(GENERATION, config), &rows(3, row(200))), []);
}

#[test]
fn answers_that_a_template_does_not_mark_are_unmatched() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.marked %}\
        {% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}\
        {% endfor %}";
    let row = |i: usize, marked: bool| {
        json!({"messages": [{"role": "user", "content": format!("{i}")},
                            {"role": "assistant", "content": "ok", "marked": marked}]})
    };
    let none = audit(encoder(template), &rows(5, |i| row(i, false)));
    let told: Vec<_> = none.verdicts(&[]).map(|(f, v)| (f.code, v, f.rows)).collect();
    assert_eq!(told, [(AuditCode::RoleUnmatched, Verdict::Refuse, 5)]);
    let some = found(encoder(template), &rows(5, |i| row(i, i > 1)));
    assert_eq!(some, [("role-unmatched", false, 2)]);
}

#[test]
fn a_role_that_the_template_leaves_out_is_told_with_its_text() {
    // The answer repeats the result, so the text as such is in the rendering.
    let row = |i: usize| chat(&[("user", &format!("{i}")), ("tool", "21 degrees"), ("assistant", "21 degrees")]);
    let dropped = audit(encoder(DEAF_TO_TOOLS), &rows(3, row));
    let [finding] = &dropped.findings[..] else { panic!("{:?}", dropped.findings) };
    assert_eq!((finding.code, finding.refuses, finding.rows), (AuditCode::RoleDropped, true, 3));
    assert!(finding.message.contains("the messages of the role `tool`, first \"21 degrees\""), "{}", finding.message);
    // Most messages of the role are there.
    let template = GENERATION.replace("{%- for message in messages %}", "{%- for message in messages[:3] %}");
    let row = |_| chat(&[("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "left out")]);
    assert_eq!(found(encoder(&template), &rows(2, row)), [("role-dropped", false, 2)]);
}

#[test]
fn a_stop_token_outside_of_the_marked_answer_is_never_trained() {
    let template = GENERATION.replace(
        "message.content + '<|im_end|>\\n' }}\n        {%- endgeneration %}",
        "message.content }}\n        {%- endgeneration %}\n        {{- '<|im_end|>\\n' }}",
    );
    let masked = audit(encoder(&template), &rows(4, good));
    let [finding] = &masked.findings[..] else { panic!("{:?}", masked.findings) };
    assert_eq!((finding.code, finding.refuses, finding.rows), (AuditCode::StopUntrained, true, 4));
    assert!(finding.message.contains("`<|im_end|>` ends every answer and is masked"), "{}", finding.message);
    assert!(finding.first.excerpt.ends_with("⟦answer 0⟧<|im_end|>\\n"), "{}", finding.first.excerpt);
    let endless = "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}";
    let absent = audit(encoder(endless), &rows(4, good));
    assert_eq!(absent.findings[0].code, AuditCode::StopUntrained);
    assert!(absent.findings[0].message.starts_with("no stop token follows"), "{}", absent.findings[0].message);
}

#[test]
fn labels_that_mask_the_padding_token_mask_the_stop_token_with_it() {
    let encoder = || with_settings(json!({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}));
    let end = encoder().token_id("<|im_end|>").unwrap();
    let row = |label: i64| move |i: usize| json!({"input_ids": [i, 40, 41, end], "labels": [-100, 40, 41, label]});
    let masked = audit(encoder(), &rows(4, row(-100)));
    let [finding] = &masked.findings[..] else { panic!("{:?}", masked.findings) };
    assert_eq!((finding.code, finding.refuses), (AuditCode::StopUntrained, true));
    assert!(
        finding.message.ends_with("it is the padding token too, and masking padding masks it"),
        "{}",
        finding.message
    );
    assert_eq!(found(encoder(), &rows(4, row(i64::from(end)))), []);
    // Parts of documents may end elsewhere.
    let part = |i: usize| json!({"input_ids": [i, 40, 41], "labels": [-100, 40, 41]});
    assert_eq!(found(encoder(), &rows(4, part)), [("stop-untrained", false, 4)]);
}

#[test]
fn doubled_ends_and_beginnings_are_found() {
    let allow = TokensConfig { special_tokens: SpecialTokens::Allow, ..TokensConfig::default() };
    let ended = |i: usize| chat(&[("user", &format!("{i}")), ("assistant", "ok<|im_end|>")]);
    let doubled = audit(encoder_with(GENERATION, allow.clone()), &rows(3, ended));
    assert_eq!(doubled.findings[0].code, AuditCode::DoubleEos);
    assert!(doubled.findings[0].first.excerpt.contains("ok<|im_end|><|im_end|>"));
    // One in many is an accident, and no reason to stop.
    let rare = rows(256, |i| if i == 200 { ended(i) } else { good(i) });
    assert_eq!(found(encoder_with(GENERATION, allow), &rare), [("double-eos", false, 1)]);
    let bos = json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": format!("{{{{ bos_token }}}}{GENERATION}")});
    assert_eq!(found(with_settings(bos), &rows(3, good)), [("double-bos", true, 3)]);
    // Padding of rows given as tokens is masked and harmless.
    let end = encoder(CHATML).token_id("<|endoftext|>").unwrap();
    let padded = |label: i64| move |i: usize| json!({"input_ids": [i, 40, end, end, end], "labels": [-100, 40, end, label, label]});
    assert_eq!(found(encoder(CHATML), &rows(3, padded(-100))), []);
    assert_eq!(found(encoder(CHATML), &rows(3, padded(i64::from(end)))), [("double-eos", true, 3)]);
}

#[test]
fn thinking_blocks_that_are_open_at_one_end_are_found() {
    let answer = |text: &'static str| move |i: usize| chat(&[("user", &format!("{i} <think>")), ("assistant", text)]);
    assert_eq!(found(encoder(GENERATION), &rows(3, answer("<think>\nhm"))), [("think-unclosed", true, 3)]);
    assert_eq!(found(encoder(GENERATION), &rows(3, answer("hm</think>ok"))), [("think-unopened", true, 3)]);
    let opened = GENERATION.replace("message.content + '<|im_end|>", "'<think>\\n' + message.content + '<|im_end|>");
    assert_eq!(found(encoder(&opened), &rows(3, good)), [("think-unclosed", true, 3)]);
    let rare = rows(200, |i| if i == 7 { answer("<think>\nhm")(i) } else { good(i) });
    assert_eq!(found(encoder(GENERATION), &rare), [("think-unclosed", false, 1)]);
}

#[test]
fn rows_that_are_all_too_long_stop_a_run_unless_they_are_split() {
    let row = |i: usize| json!({"text": format!("{i}{}", "z".repeat(40))});
    let with = |overlong| encoder_with(CHATML, TokensConfig { max_length: 20, overlong, ..TokensConfig::default() });
    assert_eq!(found(with(Overlong::Truncate), &rows(3, row)), [("all-overlong", true, 3)]);
    assert_eq!(found(with(Overlong::Split), &rows(3, row)), []);
    let mixed = rows(3, |i| if i == 0 { json!({"text": "short"}) } else { row(i) });
    assert_eq!(found(with(Overlong::Truncate), &mixed), []);
}

#[test]
fn answers_behind_the_cut_are_a_warning() {
    let row = |i: usize| if i < 2 { chat(&[("user", &"z".repeat(90)), ("assistant", "a")]) } else { good(i) };
    let config = TokensConfig { max_length: 60, ..TokensConfig::default() };
    assert_eq!(found(encoder_with(GENERATION, config), &rows(20, row)), [("answers-cut", false, 2)]);
}

#[test]
fn empty_answers_lost_reasoning_and_repeated_rows_are_told() {
    let empty = |i: usize| chat(&[("user", &format!("{i}")), ("assistant", " ")]);
    assert_eq!(found(encoder(GENERATION), &rows(3, empty)), [("empty-answers", true, 3)]);
    let some = rows(3, |i| if i == 0 { empty(i) } else { good(i) });
    assert_eq!(found(encoder(GENERATION), &some), [("empty-answers", false, 1)]);

    let reasoned = |i: usize| {
        json!({"messages": [{"role": "user", "content": format!("{i}")},
                            {"role": "assistant", "reasoning_content": "six sevens", "content": "42"},
                            {"role": "user", "content": "sure?"},
                            {"role": "assistant", "reasoning_content": "yes", "content": "Yes."}]})
    };
    assert_eq!(found(encoder(CHATML), &rows(3, reasoned)), [("reasoning-lost", false, 3)]);
    let last = TokensConfig { loss_on: LossOn::Last, ..TokensConfig::default() };
    assert_eq!(found(encoder_with(CHATML, last), &rows(3, reasoned)), []);

    assert_eq!(found(encoder(GENERATION), &rows(8, |_| good(0))), [("same-rows", false, 8)]);
    let twice = audit(encoder(GENERATION), &rows(8, |i| good(i / 2)));
    assert_eq!((twice.duplicates, twice.findings.len()), (4, 0));
}

#[test]
fn wrong_rows_are_counted_by_what_is_wrong_with_them() {
    let injected = |i: usize| chat(&[("user", &format!("{i} <|im_end|>\nnow")), ("assistant", "ok")]);
    let stranger = |_| chat(&[("bot", "hi")]);
    let mixed = rows(9, |i| {
        if i % 3 == 0 {
            injected(i)
        } else if i == 5 {
            stranger(i)
        } else {
            good(i)
        }
    });
    let audit = audit(encoder(CHATML), &mixed);
    let told: Vec<(u64, String)> = audit.unreadable.iter().map(|u| (u.rows, u.first.to_string())).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].0 == 3 && told[0].1.contains("row 0 (line 1), column `messages`"), "{told:?}");
    assert!(told[1].0 == 1 && told[1].1.contains("row 5 (line 6)") && told[1].1.contains("`bot`"), "{told:?}");
    assert_eq!((audit.rows, audit.samples), (9, 5));
}

#[test]
fn an_excerpt_shows_the_place_on_one_line_with_what_is_trained() {
    let text = format!("{}\x1b", "z".repeat(300));
    let row = chat(&[("user", &text), ("assistant", "<think>\nhm")]);
    let audit = audit(encoder(GENERATION), &[row]);
    let excerpt = &audit.findings[0].first.excerpt;
    assert!(excerpt.starts_with("...zz") && excerpt.ends_with("\\n⟦<think>\\nhm<|im_end|>\\n⟧"), "{excerpt}");
    assert!(excerpt.contains("\\u{1b}") && !excerpt.contains('\n') && excerpt.len() < 300, "{excerpt}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn any_row_can_be_looked_at(
        turns in prop::collection::vec((0usize..4, prop::collection::vec(0usize..9, 0..5)), 1..6),
        ids in prop::collection::vec(0..VOCAB, 1..9),
        masked in any::<bool>(),
        max_length in 2usize..40,
        template in 0usize..3,
    ) {
        const PARTS: [&str; 9] =
            ["<|im_end|>", "<|endoftext|>", "<think>", "</think>", "\n", "é🦀", "a word", "\u{202e}\0", "{{"];
        let turns: Vec<(&str, String)> = turns
            .iter()
            .map(|(role, parts)| (["system", "user", "assistant", "tool"][*role], parts.iter().map(|p| PARTS[*p]).collect()))
            .collect();
        let said: Vec<(&str, &str)> = turns.iter().map(|(role, text)| (*role, text.as_str())).collect();
        let labels: Vec<i64> = ids.iter().enumerate().map(|(i, id)| if masked && i % 2 == 0 { -100 } else { *id as i64 }).collect();
        let config = TokensConfig { max_length, special_tokens: SpecialTokens::Allow, ..TokensConfig::default() };
        for row in [chat(&said), json!({"input_ids": ids, "labels": labels})] {
            let template = [CHATML, GENERATION, DEAF_TO_TOOLS][template];
            let audit = audit(encoder_with(template, config.clone()), &[row.clone(), row]);
            prop_assert_eq!(audit.rows, 2);
            prop_assert!(audit.trained <= audit.tokens && audit.unreadable.is_empty());
            prop_assert!(audit.trained > 0 || audit.findings.iter().any(|f| f.code == AuditCode::NoLoss));
            for finding in &audit.findings {
                prop_assert_eq!(finding.first.row, 0);
                prop_assert!(!finding.first.excerpt.contains('\n'));
            }
        }
    }
}
