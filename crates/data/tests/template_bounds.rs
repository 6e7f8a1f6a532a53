//! Templates that were made to take all time or all memory are refused in little of either. Alone in its process,
//! because it reads the peak of the whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::time::Instant;

use qwen_tune_data::{Encoder, Message, TokensConfig};
use serde_json::{Map, json};

const MIB: u64 = 1 << 20;

/// Peak of resident memory in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The least tokenizer there is.
fn model_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0}, "merges": []}});
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

/// What becomes of a template: the text, or why there is none, compiled or not.
fn render(dir: &tempfile::TempDir, template: &str) -> Result<String, String> {
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let encoder = Encoder::from_dir(dir.path(), &TokensConfig::default(), 1).map_err(|e| e.to_string())?;
    let turns = [Message::new("user", "a"), Message::new("assistant", "b")];
    encoder.render_chat(&turns, None, true, &Map::new()).map_err(|e| e.to_string())
}

/// Sixty lists, each of which holds the one before twice, and then what is done with the last.
fn doubled(then: &str) -> String {
    format!(
        "{{% set ns = namespace(x=['a']) %}}{{% for i in range(60) %}}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{then}"
    )
}

/// The same built by a macro that calls itself, through no variable.
fn doubled_by_macro(then: &str) -> String {
    format!(
        "{{% macro f(x, n) %}}{{% if n %}}{{{{ f([x, x], n - 1) }}}}{{% else %}}{then}{{% endif %}}{{% endmacro %}}{{{{ f('a', 60) }}}}"
    )
}

#[test]
fn no_template_takes_more_than_a_little_time_and_memory() {
    let long = |unit: &str, count: usize| unit.repeat(count);
    let loops = |body: &str| format!("{{% set a = 'a' * 1000000 %}}{{% for i in range(99999) %}}{body}{{% endfor %}}");
    let mut bombs = vec![
        // Endless work.
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}".into(),
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}".into(),
        loops("{% set b = a.upper() %}"),
        loops("{% set b = a.count('b') %}"),
        loops("{% set b = a|tojson %}"),
        loops("{% set b = 'b' in a %}"),
        loops("{% set b = strftime_now('%A' * 200000) %}"),
        // Recursion.
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
        "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}".into(),
        "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns ~ '' }}".into(),
        "{% set ns = namespace(x=1) %}{% set ns.x = [{'a': ns}] %}{{ ns == ns.x }}".into(),
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".into(),
        // Text without end.
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
            .into(),
        "{{ 'x' * 1000000000 }}".into(),
        "{{ ('x' * 90000000)|length }}".into(),
        "{% set a = 'x' * 1000000 %}{{ a.replace('', a)|length }}".into(),
        "{% set a = 'x' * 1000000 %}{{ a.join(a)|length }}".into(),
        "{{ '{:>1000000000}'.format(1) }}".into(),
        "{{ ('{0}' * 10000).format('x' * 10000000) }}".into(),
        "{{ 'a\\n'|indent(9000000000) }}{{ ('a\\n' * 100000)|indent(100000) }}".into(),
        "{{ [1, 2]|tojson(indent='x' * 10000000)|length }}{{ ([1] * 1000)|tojson(indent='x' * 10000000)|length }}"
            .into(),
        "{{ ('a' * 10000000).split('a')|length }}".into(),
        "{{ ('\\n' * 10000000).splitlines()|length }}".into(),
        "{{ range(100000000)|list|length }}".into(),
        "{% for i in range(60000) %}".to_owned() + &long("x", 2000) + "{% endfor %}",
        "{% set a %}{% for i in range(60000) %}".to_owned() + &long("x", 4000) + "{% endfor %}{% endset %}{{ a }}",
        // Syntax without end.
        "{{ 1".to_owned() + &long("+1", 60_000) + " }}",
        "{{ ".to_owned() + &long("-", 120_000) + "1 }}",
        "{{ ".to_owned() + &long("not ", 30_000) + "1 }}",
        "{{ ".to_owned() + &long("(", 60_000) + &long(")", 60_000) + " }}",
        "{{ ".to_owned() + &long("[", 60_000) + &long("]", 60_000) + " }}",
        "{{ x".to_owned() + &long(".a", 60_000) + " }}",
        "{{ 'a'".to_owned() + &long("|f", 60_000) + " }}",
        "{{ ".to_owned() + &long("1if 1else ", 12_000) + "1 }}",
        long("{% if 1 %}", 5_000) + &long("{% endif %}", 5_000),
        "{{ 'a".to_owned() + &long("a", 200_000) + "' }}",
    ];
    for then in ["{{ ns.x ~ '' }}", "{{ ns.x|tojson }}", "{{ {ns.x: ns.x == [ns.x]} }}"] {
        bombs.push(doubled(then));
    }
    for then in ["{{ x }}", "{{ x ~ '' }}", "{{ {x: x == [x]} }}"] {
        bombs.push(doubled_by_macro(then));
    }

    bombs.push(long("{% with a = [a, a] %}", 60) + "{{ a ~ '' }}" + &long("{% endwith %}", 60));
    bombs.push(long("{% for a in [[a, a]] %}", 60) + "{{ a ~ '' }}" + &long("{% endfor %}", 60));

    let dir = model_dir();
    assert_eq!(render(&dir, "{{ messages[1].content }}{{ 1 + 1 }}"), Ok("b2".into()));
    let before = peak();
    let started = Instant::now();
    for bomb in &bombs {
        let begun = Instant::now();
        let result = render(&dir, bomb);
        let shown: String = bomb.chars().take(120).collect();
        let small = result.as_ref().is_ok_and(|text| text.len() < 100);
        assert!(result.is_err() || small, "{shown}");
        assert!(begun.elapsed().as_secs() < 8, "{shown} took {:?}", begun.elapsed());
        let grown = peak().saturating_sub(before) / MIB;
        assert!(grown < 600, "{shown} took {grown} MiB");
    }
    let (seconds, grown) = (started.elapsed().as_secs(), peak().saturating_sub(before) / MIB);
    assert!(seconds < 60, "{seconds} s for all of them, {grown} MiB");
}
