//! Rows to tokens: what is trained, what is cut, what is refused.

use qwen_tune_data::{
    Conversation, Encoder, LossOn, Message, Origin, Overlong, Row, RowError, SpecialTokens, TokensConfig,
};
use serde_json::{Map, json};

use crate::fixture::{CHATML, GENERATION, VOCAB, encoder, encoder_with, messages, model_dir};

const ORIGIN: Origin = Origin { source: 0, file: 0, row: 0 };

fn chat(turns: &[(&str, &str)]) -> Row {
    Row::Chat(Conversation { messages: messages(turns), tools: None })
}

/// The trained tokens as text, untrained stretches as `|`.
fn trained(encoder: &Encoder, row: &Row) -> String {
    let tokenised = encoder.tokenise(row).unwrap();
    assert_eq!(tokenised.ids.len(), tokenised.trained.len());
    let mut out = String::new();
    let mut run = Vec::new();
    for (id, trained) in tokenised.ids.iter().zip(&tokenised.trained) {
        if *trained {
            run.push(*id);
        } else {
            out += &encoder.decode(&run, false).unwrap();
            run.clear();
            if !out.ends_with('|') {
                out.push('|');
            }
        }
    }
    out + &encoder.decode(&run, false).unwrap()
}

fn refused(encoder: &Encoder, row: &Row) -> RowError {
    encoder.encode(row, ORIGIN).unwrap_err()
}

const TWO: [(&str, &str); 4] = [("user", "6x7?"), ("assistant", "42"), ("user", "sure?"), ("assistant", "Yes.")];

#[test]
fn chatml_answers_are_trained_up_to_their_end_token() {
    assert_eq!(trained(&encoder(CHATML), &chat(&TWO)), "|42<|im_end|>|Yes.<|im_end|>|");
}

#[test]
fn generation_tags_say_exactly_what_is_trained() {
    assert_eq!(trained(&encoder(GENERATION), &chat(&TWO)), "|42<|im_end|>\n|Yes.<|im_end|>\n");
}

#[test]
fn loss_can_be_on_the_last_answer_or_on_everything() {
    let with = |loss_on| encoder_with(CHATML, TokensConfig { loss_on, ..TokensConfig::default() });
    assert_eq!(trained(&with(LossOn::Last), &chat(&TWO)), "|Yes.<|im_end|>|");
    let all = trained(&with(LossOn::All), &chat(&TWO));
    assert!(all.starts_with("|user\n6x7?<|im_end|>\n") && all.ends_with("Yes.<|im_end|>\n"), "{all}");
}

#[test]
fn an_empty_thinking_block_is_masked_unless_told_otherwise() {
    let turns = [("user", "hi"), ("assistant", "\n\nyo")];
    assert_eq!(trained(&encoder(CHATML), &chat(&turns[..1])), "|");
    // The block's last newlines are their own token here, whatever follows.
    assert_eq!(trained(&encoder(CHATML), &chat(&[("user", "hi"), ("assistant", "yo")])), "|yo<|im_end|>|");
    let keep = TokensConfig { mask_empty_think: Some(false), ..TokensConfig::default() };
    let row = chat(&[("user", "hi"), ("assistant", "yo")]);
    assert_eq!(trained(&encoder_with(CHATML, keep), &row), "|<think>\n\n</think>\n\nyo<|im_end|>|");
    let mut thinking = messages(&[("user", "hi"), ("assistant", "yo")]);
    let mut fields = thinking[1].fields().clone();
    fields.insert("reasoning_content".into(), json!("hm"));
    thinking[1] = serde_message(&fields);
    let row = Row::Chat(Conversation { messages: thinking, tools: None });
    assert_eq!(trained(&encoder(CHATML), &row), "|<think>\nhm\n</think>\n\nyo<|im_end|>|");
}

/// A message with more than role and content, read the way a file is.
fn serde_message(fields: &Map<String, serde_json::Value>) -> Message {
    let dir = tempfile::tempdir().unwrap();
    let path = crate::fixture::write(dir.path(), "m.jsonl", &json!({"messages": [fields]}).to_string());
    let dataset = qwen_tune_data::Dataset::open(
        &[qwen_tune_data::SourceConfig::new(path.to_str().unwrap())],
        std::sync::Arc::new(encoder("{{ messages[0] | tojson }}")),
        &[],
    )
    .unwrap();
    let (_, row) = dataset.samples().next_row().unwrap().unwrap();
    match row {
        Row::Chat(conversation) => conversation.messages[0].clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_completion_is_trained_and_ends_with_eos() {
    let encoder = encoder(CHATML);
    let row = Row::Completion { prompt: "2+2=".into(), completion: "4".into() };
    assert_eq!(trained(&encoder, &row), "|4<|im_end|>");
    let already = Row::Completion { prompt: "a".into(), completion: "b<|im_end|>".into() };
    assert_eq!(trained(&encoder, &already), "|b<|im_end|>");
    let prompt = Conversation { messages: messages(&TWO[..3]), tools: None };
    let row = Row::ChatCompletion { prompt, completion: messages(&TWO[3..]) };
    assert_eq!(trained(&encoder, &row), "|Yes.<|im_end|>|");
}

#[test]
fn a_document_is_trained_whole_and_ends_with_endoftext() {
    assert_eq!(trained(&encoder(CHATML), &Row::Text("then".into())), "|n<|endoftext|>");
    assert_eq!(trained(&encoder(CHATML), &Row::Text(String::new())), "|");
}

#[test]
fn token_rows_are_used_as_they_are() {
    let encoder = encoder(CHATML);
    let row = |labels: Option<Vec<i64>>| Row::Tokens { ids: vec![70, 71, 72, 73], labels };
    assert_eq!(encoder.tokenise(&row(None)).unwrap().trained, [false, true, true, true]);
    let masked = encoder.tokenise(&row(Some(vec![70, -100, 72, -100]))).unwrap();
    assert_eq!((masked.ids, masked.trained), (vec![70, 71, 72, 73], vec![false, false, true, false]));
    assert!(matches!(refused(&encoder, &row(Some(vec![70]))), RowError::LabelCount { labels: 1, ids: 4 }));
    assert!(matches!(refused(&encoder, &row(Some(vec![70, 71, 72, 9]))), RowError::Label { position: 3, .. }));
    let outside = Row::Tokens { ids: vec![1, VOCAB as u32], labels: None };
    assert!(matches!(refused(&encoder, &outside), RowError::TokenId { position: 1, limit: VOCAB, .. }));
}

#[test]
fn overlong_rows_are_cut_dropped_split_or_refused() {
    let encode = |overlong| {
        let config = TokensConfig { max_length: 3, overlong, ..TokensConfig::default() };
        encoder_with(CHATML, config).encode(&Row::Text("abcdefg".into()), ORIGIN)
    };
    let cut = encode(Overlong::Truncate).unwrap();
    assert_eq!((cut.samples[0].ids.len(), cut.truncated, cut.tokens), (3, true, 8));
    assert!(encode(Overlong::Drop).unwrap().samples.is_empty());
    let split = encode(Overlong::Split).unwrap();
    assert_eq!(split.samples.iter().map(|s| s.ids.len()).collect::<Vec<_>>(), [3, 3, 2]);
    assert!(split.samples.iter().all(|s| !s.trained[0] && s.trained[1]));
    assert_eq!(encode(Overlong::Error).unwrap_err(), RowError::Overlong { tokens: 8, max: 3 });
}

#[test]
fn special_tokens_in_a_message_are_refused_escaped_or_kept() {
    let row = chat(&[("user", "stop <|im_end|> now"), ("assistant", "ok")]);
    let with = |special_tokens| encoder_with(GENERATION, TokensConfig { special_tokens, ..TokensConfig::default() });
    let end = encoder(GENERATION).token_id("<|im_end|>").unwrap();
    let count = |special| with(special).tokenise(&row).unwrap().ids.iter().filter(|id| **id == end).count();
    for special in [SpecialTokens::Auto, SpecialTokens::Error] {
        let error = refused(&with(special), &row).to_string();
        assert!(error.starts_with("`content` of message 0 spells the special token `<|im_end|>`"), "{error}");
    }
    assert_eq!(count(SpecialTokens::Escape), 2);
    assert_eq!(count(SpecialTokens::Allow), 3);
    let escaped = with(SpecialTokens::Escape).tokenise(&row).unwrap();
    assert_eq!(with(SpecialTokens::Allow).decode(&escaped.ids, false).unwrap(), escaped.text);
    assert_eq!(trained(&with(SpecialTokens::Escape), &row), "|ok<|im_end|>\n");
    // Text that no template frames may hold control tokens.
    let text = Row::Text("a<|im_end|>".into());
    assert!(encoder(CHATML).tokenise(&text).is_ok());
    assert!(matches!(refused(&with(SpecialTokens::Error), &text), RowError::SpecialToken { .. }));
}

#[test]
fn thinking_tags_are_not_control_tokens() {
    let row = chat(&[("user", "q"), ("assistant", "<think>\na\n</think>\n\nb")]);
    assert_eq!(trained(&encoder(GENERATION), &row), "|<think>\na\n</think>\n\nb<|im_end|>\n");
}

#[test]
fn roles_that_the_template_does_not_name_are_refused() {
    let row = chat(&[("bot", "hi")]);
    assert!(matches!(refused(&encoder(CHATML), &row), RowError::UnknownRole { index: 0, .. }));
    assert!(
        encoder("{{ messages[0].content }}{# bot #}")
            .render_chat(&messages(&[("bot", "x")]), None, false, &Map::new())
            .is_ok()
    );
}

#[test]
fn a_template_that_marks_nothing_asks_for_one_that_does() {
    let row = chat(&TWO);
    let plain = encoder("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}");
    let error = refused(&plain, &row);
    assert_eq!(error, RowError::NoMaskRule);
    assert!(error.to_string().contains("{% generation %}"), "{error}");
    // A completion needs no rule if the prompt's rendering stays.
    let prompt = Conversation { messages: messages(&TWO[..1]), tools: None };
    let row = Row::ChatCompletion { prompt, completion: messages(&TWO[1..2]) };
    assert_eq!(trained(&plain, &row), "|[assistant] 42\n");
}

#[test]
fn a_beginning_token_is_added_to_documents_only_where_the_tokenizer_says_so() {
    let dir = model_dir(&json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": true}));
    let encoder = Encoder::from_dir(dir.path(), &TokensConfig::default(), VOCAB).unwrap();
    let bos = encoder.token_id("<|im_start|>").unwrap();
    let ids = |text: &str| encoder.tokenise(&Row::Text(text.into())).unwrap().ids;
    assert_eq!(ids("x")[0], bos);
    assert_eq!(ids("<|im_start|>x"), ids("x"));
    let rendered = encoder.tokenise(&chat(&TWO)).unwrap();
    assert_eq!(rendered.ids.iter().filter(|id| **id == bos).count(), 4, "chat templates write their own");
}

#[test]
fn the_model_s_template_is_found_where_hugging_face_puts_it() {
    let render = |dir: &std::path::Path, config: &TokensConfig, tools: bool| {
        let encoder = Encoder::from_dir(dir, config, VOCAB).unwrap();
        let tools = tools.then(|| json!([{"name": "f"}]));
        encoder.render_chat(&messages(&[("user", "x")]), tools.as_ref(), false, &Map::new()).unwrap()
    };
    let config = TokensConfig::default();
    let named = model_dir(&json!({"chat_template": [
        {"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}));
    assert_eq!(render(named.path(), &config, false), "D");
    assert_eq!(render(named.path(), &config, true), "T");
    std::fs::write(named.path().join("chat_template.jinja"), "F").unwrap();
    assert_eq!(render(named.path(), &config, true), "F");
    let inline = TokensConfig { template: Some("{{ 'I' }}".into()), ..config.clone() };
    assert_eq!(render(named.path(), &inline, true), "I");
    let path = named.path().join("own.jinja");
    std::fs::write(&path, "O").unwrap();
    let file = TokensConfig { template: Some(path.to_str().unwrap().into()), ..config.clone() };
    assert_eq!(render(named.path(), &file, true), "O");
    let none = model_dir(&json!({}));
    assert_eq!(render(none.path(), &config, false), "<|im_start|>user\nx<|im_end|>\n");
}

#[test]
fn text_comes_out_in_whole_characters_as_tokens_arrive() {
    let encoder = encoder(CHATML);
    let text = "thé 中 🦀 the\n\n<think>x";
    let ids = encoder.encode_text(text).unwrap();
    let mut stream = encoder.text_stream(false);
    let mut parts: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    parts.push(stream.finish().unwrap());
    assert_eq!(parts.concat(), text);
    assert!(parts.iter().all(|p| !p.contains('\u{fffd}')));
    let mut broken = encoder.text_stream(true);
    assert_eq!(broken.push(encoder.encode_text("é").unwrap()[0]).unwrap(), "");
    assert_eq!(broken.finish().unwrap(), "\u{fffd}");
}

#[test]
fn pieces_hold_every_token_once_and_whole_characters() {
    let encoder = encoder(CHATML);
    let text = "thé 🦀<|im_end|>\n";
    let mut ids = encoder.encode_text(text).unwrap();
    let unknown = VOCAB as u32 - 1;
    // The first byte of a character that does not follow, before a token that the tokenizer does not know.
    ids.extend([encoder.encode_text("é").unwrap()[0], unknown]);
    let pieces = encoder.pieces_of(&ids).unwrap();
    assert_eq!(pieces.iter().map(|piece| piece.tokens).sum::<usize>(), ids.len());
    let texts: Vec<&str> = pieces.iter().map(|piece| piece.text.as_str()).collect();
    assert_eq!(texts, ["th", "é", " ", "🦀", "<|im_end|>", "\n", "\u{fffd}", "<|319|>"]);
    assert_eq!(pieces.iter().map(|piece| piece.tokens).collect::<Vec<_>>(), [1, 2, 1, 4, 1, 1, 1, 1]);
}

#[test]
fn stop_tokens_are_looked_up() {
    let encoder = encoder(CHATML);
    let ids: Vec<u32> = ["<|endoftext|>", "<|im_end|>"].map(|t| encoder.token_id(t).unwrap()).to_vec();
    assert_eq!(encoder.stop_ids(), ids);
}

#[test]
fn what_is_wrong_with_a_model_directory_is_said() {
    let open =
        |dir: &std::path::Path, config: &TokensConfig| Encoder::from_dir(dir, config, VOCAB).unwrap_err().to_string();
    let config = TokensConfig::default();
    let dir = model_dir(&json!({"chat_template": "a\n{% if %}"}));
    let error = open(dir.path(), &config);
    assert!(error.contains("tokenizer_config.json") && error.contains("(line 2)"), "{error}");
    let short = TokensConfig { max_length: 1, ..config.clone() };
    assert!(open(dir.path(), &short).starts_with("`tokens.max_length` is 1, expected at least 2"));
    let date = TokensConfig { template_date: Some("May".into()), ..config.clone() };
    assert!(open(dir.path(), &date).contains("template_date"));
    std::fs::write(dir.path().join("tokenizer_config.json"), "[1").unwrap();
    assert!(open(dir.path(), &config).contains("is damaged"));
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(open(dir.path(), &config).contains("cannot use tokenizer"));
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(open(dir.path(), &config).contains("no such file"));
}
