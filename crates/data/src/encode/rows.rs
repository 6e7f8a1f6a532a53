//! What each kind of row is as text, and which of its tokens carry loss.

use std::ops::Range;

use serde_json::{Map, Value};

use super::{Encoder, Pieces, Tokenised};
use crate::batch::IGNORE;
use crate::chat::{ChatTemplate, Found, Mask, Rendered, empty_think, from_chars, marks};
use crate::error::RowError;
use crate::row::{Conversation, Message};
use crate::tokens::{LossOn, SpecialTokens};

/// Roles that every template is taken to know; others must be named in the template's text.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

impl Encoder {
    pub(super) fn chat(&self, conversation: &Conversation) -> Result<Tokenised, RowError> {
        let template = self.template.as_ref().ok_or(RowError::NoTemplate)?;
        let conversation = self.admit(template, conversation)?;
        let rendered = self.rendered(template, &conversation, false)?;
        let text = Marked::new(&rendered);
        let mask = self.mask(template, conversation.tools.is_some());
        let Pieces { text: clean, ids, offsets } = self.pieces(&rendered.text)?;
        let trained = if self.all_trained() {
            vec![true; ids.len()]
        } else {
            let spans = self.answers(mask, &clean, &text.spans, &ids, &offsets)?;
            self.train(mask, &clean, &spans, &offsets)
        };
        Ok(Tokenised { text: clean, ids, trained })
    }

    pub(super) fn chat_completion(&self, prompt: &Conversation, completion: &[Message]) -> Result<Tokenised, RowError> {
        let template = self.template.as_ref().ok_or(RowError::NoTemplate)?;
        let prompt = self.admit(template, prompt)?;
        let mut whole = prompt.clone();
        let more = Conversation { messages: completion.to_vec(), tools: None };
        whole.messages.extend(self.admit(template, &more)?.messages);
        let head = Marked::new(&self.rendered(template, &prompt, true)?).text;
        let rendered = self.rendered(template, &whole, false)?;
        let text = Marked::new(&rendered);
        if !text.text.starts_with(&head) {
            let agree = text.text.bytes().zip(head.bytes()).take_while(|(a, b)| a == b).count();
            return Err(RowError::PromptChanged { agree, prompt: head.len() });
        }
        let mask = self.mask(template, whole.tools.is_some());
        let Pieces { text: clean, ids, offsets } = self.pieces(&rendered.text)?;
        if self.all_trained() {
            let trained = vec![true; ids.len()];
            return Ok(Tokenised { text: clean, ids, trained });
        }
        let behind = head.len()..clean.len();
        let only_answers = completion.iter().all(|m| m.role() == "assistant");
        let spans = match self.answers(mask, &clean, &text.spans, &ids, &offsets) {
            Ok(spans) => spans.into_iter().filter_map(|span| overlap(&span, &behind)).collect(),
            // One answer behind the prompt needs no rule to find it.
            Err(RowError::NoMaskRule) if only_answers && completion.len() == 1 => vec![behind],
            Err(error) => return Err(error),
        };
        let trained = self.train(mask, &clean, &spans, &offsets);
        Ok(Tokenised { text: clean, ids, trained })
    }

    pub(super) fn completion(&self, prompt: &str, completion: &str) -> Result<Tokenised, RowError> {
        let text = self.verbatim(prompt, "the prompt")? + &self.verbatim(completion, "the completion")?;
        let Pieces { text: clean, ids, offsets } = self.pieces(&text)?;
        let answer = prompt.len()..clean.len();
        let mut trained = from_chars(std::slice::from_ref(&answer), &offsets, false);
        if self.all_trained() {
            trained.fill(true);
        }
        Ok(self.framed(Tokenised { text: clean, ids, trained }, self.eos.or(self.document_end)))
    }

    pub(super) fn document(&self, text: &str) -> Result<Tokenised, RowError> {
        let Pieces { text: clean, ids, .. } = self.pieces(&self.verbatim(text, "the text")?)?;
        let trained = vec![true; ids.len()];
        Ok(self.framed(Tokenised { text: clean, ids, trained }, self.document_end.or(self.eos)))
    }

    /// Begin and end of text that no template frames, unless it has them already.
    fn framed(&self, mut row: Tokenised, end: Option<u32>) -> Tokenised {
        if let Some(bos) = self.bos.filter(|bos| row.ids.first() != Some(bos)) {
            row.ids.insert(0, bos);
            row.trained.insert(0, false);
        }
        if let Some(end) = end.filter(|end| row.ids.last() != Some(end)) {
            row.ids.push(end);
            row.trained.push(true);
        }
        row
    }

    fn rendered(
        &self,
        template: &ChatTemplate,
        conversation: &Conversation,
        prompt: bool,
    ) -> Result<Rendered, RowError> {
        template.render(&conversation.messages, conversation.tools.as_ref(), prompt, &self.vars)
    }

    /// Byte ranges that the assistant wrote, as `loss_on` wants them.
    fn answers(
        &self,
        mask: Mask,
        text: &str,
        generation: &[Range<usize>],
        ids: &[u32],
        offsets: &[(usize, usize)],
    ) -> Result<Vec<Range<usize>>, RowError> {
        let mut spans = match mask {
            Mask::Generation => generation.to_vec(),
            Mask::ChatMl { start, end } => crate::chat::chatml(text, ids, offsets, start, end),
            Mask::None => return Err(RowError::NoMaskRule),
        };
        if self.config.loss_on == LossOn::Last {
            spans = spans.pop().into_iter().collect();
        }
        Ok(spans)
    }

    fn train(&self, mask: Mask, text: &str, spans: &[Range<usize>], offsets: &[(usize, usize)]) -> Vec<bool> {
        // transformers counts a token that a generation span begins within; a token that holds the end of ChatML's
        // header is part of what the model is given.
        let mut trained = from_chars(spans, offsets, mask == Mask::Generation);
        if self.masks_empty_think(mask) {
            let blocks: Vec<_> = spans.iter().filter_map(|span| empty_think(text, span)).collect();
            for (trained, masked) in trained.iter_mut().zip(from_chars(&blocks, offsets, false)) {
                *trained &= !masked;
            }
        }
        trained
    }

    /// Text that is used as it stands.
    fn verbatim(&self, text: &str, what: &str) -> Result<String, RowError> {
        match self.config.special_tokens {
            SpecialTokens::Auto | SpecialTokens::Allow => {
                refuse_marks(text, what)?;
                Ok(text.to_owned())
            }
            SpecialTokens::Error => self.refuse(text, what).map(|()| text.to_owned()),
            SpecialTokens::Escape => {
                refuse_marks(text, what)?;
                Ok(self.special.escape(text))
            }
        }
    }

    fn refuse(&self, text: &str, what: &str) -> Result<(), RowError> {
        match self.special.find(text) {
            None => Ok(()),
            Some(Found::Token { token, at }) => {
                let around = crate::audit::one_line(&around(text, at..at + token.len()));
                Err(RowError::SpecialToken { token, what: what.to_owned(), around })
            }
            Some(Found::Mark(c)) => Err(RowError::Reserved { what: what.to_owned(), code: c as u32 }),
        }
    }

    /// Checks roles and texts of a conversation, and escapes texts where the recipe says so.
    fn admit(&self, template: &ChatTemplate, conversation: &Conversation) -> Result<Conversation, RowError> {
        let mut admitted = conversation.clone();
        for (index, message) in admitted.messages.iter_mut().enumerate() {
            let role = message.role();
            if !ROLES.contains(&role) && !(template.names(role)) {
                let expected = "system, user, assistant or tool, or one that the chat template names";
                return Err(RowError::UnknownRole { index, role: role.to_owned(), expected });
            }
            for (field, value) in message.fields_mut().iter_mut().filter(|(field, _)| *field != "role") {
                self.admit_value(value, &|| format!("`{field}` of message {index}"))?;
            }
        }
        if let Some(tools) = &mut admitted.tools {
            self.admit_value(tools, &|| "`tools`".into())?;
        }
        Ok(admitted)
    }

    fn admit_value(&self, value: &mut Value, what: &dyn Fn() -> String) -> Result<(), RowError> {
        match value {
            Value::String(text) => match self.config.special_tokens {
                SpecialTokens::Auto | SpecialTokens::Error => self.refuse(text, &what()),
                SpecialTokens::Allow => refuse_marks(text, &what()),
                SpecialTokens::Escape => {
                    refuse_marks(text, &what())?;
                    *text = self.special.escape(text);
                    Ok(())
                }
            },
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.admit_value(item, what)),
            Value::Object(fields) => {
                let mut admitted = Map::with_capacity(fields.len());
                for (key, mut value) in std::mem::take(fields) {
                    let mut key = Value::String(key);
                    self.admit_value(&mut key, what)?;
                    self.admit_value(&mut value, what)?;
                    if let Value::String(key) = key {
                        admitted.insert(key, value);
                    }
                }
                *fields = admitted;
                Ok(())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }
}

/// A stretch of a text with what stands closely before and behind it.
fn around(text: &str, stretch: Range<usize>) -> String {
    const SIDE: usize = 40;
    let start = text[..stretch.start].char_indices().rev().nth(SIDE).map_or(0, |(at, c)| at + c.len_utf8());
    let end = text[stretch.end..].char_indices().nth(SIDE).map_or(text.len(), |(at, _)| stretch.end + at);
    let cut = |cut: bool| if cut { "..." } else { "" };
    format!("{}{}{}", cut(start > 0), &text[start..end], cut(end < text.len()))
}

/// Token rows: used as they are.
pub(super) fn given(ids: &[u32], labels: Option<&[i64]>) -> Result<Tokenised, RowError> {
    let Some(labels) = labels else {
        return Ok(Tokenised { text: String::new(), ids: ids.to_vec(), trained: vec![true; ids.len()] });
    };
    if labels.len() != ids.len() {
        return Err(RowError::LabelCount { labels: labels.len(), ids: ids.len() });
    }
    let mut trained = Vec::with_capacity(ids.len());
    for (position, (&label, &id)) in labels.iter().zip(ids).enumerate() {
        if label != i64::from(IGNORE) && label != i64::from(id) {
            return Err(RowError::Label { position, label, id });
        }
        trained.push(label != i64::from(IGNORE));
    }
    Ok(Tokenised { text: String::new(), ids: ids.to_vec(), trained })
}

fn refuse_marks(text: &str, what: &str) -> Result<(), RowError> {
    match crate::chat::find_mark(text) {
        Some(Found::Mark(c)) => Err(RowError::Reserved { what: what.to_owned(), code: c as u32 }),
        _ => Ok(()),
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Option<Range<usize>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (both.start < both.end).then_some(both)
}

/// Rendered text without the marks that split special tokens, and the spans moved along.
struct Marked {
    text: String,
    spans: Vec<Range<usize>>,
}

impl Marked {
    fn new(rendered: &Rendered) -> Self {
        let places: Vec<usize> = rendered.text.match_indices(marks::SPLIT).map(|(at, _)| at).collect();
        let width = marks::SPLIT.len_utf8();
        let moved = |at: usize| at - width * places.partition_point(|&place| place < at);
        Self {
            text: rendered.text.replace(marks::SPLIT, ""),
            spans: rendered.generation.iter().map(|s| moved(s.start)..moved(s.end)).collect(),
        }
    }
}
