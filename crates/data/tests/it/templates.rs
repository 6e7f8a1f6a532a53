//! Templates render as Jinja in Python renders them, within bounds. Expected texts were checked against jinja2 3.1.

use qwen_tune_data::RowError;
use serde_json::{Map, Value, json};

use crate::fixture::{encoder, messages};

fn render_with(template: &str, vars: Value) -> Result<String, RowError> {
    let turns = messages(&[("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")]);
    let vars = vars.as_object().cloned().unwrap_or_default();
    // A comment keeps the shortest templates from being taken for paths.
    encoder(&format!("{{# {{%- #}}{template}")).render_chat(&turns, None, true, &vars)
}

fn render(template: &str) -> String {
    render_with(template, Value::Null).unwrap()
}

#[test]
fn whitespace_is_trimmed_as_transformers_sets_it_up() {
    assert_eq!(render("a\n  {% if true %}\n  b\n  {% endif %}\nc\n"), "a\n  b\nc");
    assert_eq!(render("a\n  {%+ if true %}b{% endif %}\nc"), "a\n  bc");
}

#[test]
fn namespaces_macros_slices_and_loop_controls_work() {
    let template = "\
{%- macro show(m, mark='!') %}{{ m.content|trim ~ mark }}{% endmacro %}
{%- set ns = namespace(last=-1, seen=[]) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if m.role == 'user' and ns.last < 0 and not (m.content.startswith('<x>') and m.content.endswith('</x>')) %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{{- ns.last }}
{%- for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {{- ' ' + show(m, mark='?')|upper }}
    {%- if loop.previtem and loop.nextitem is undefined %}{{ '<' + loop.previtem.content }}{% endif %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
{%- endfor %}
{{- ' ' ~ messages[-1].content ~ messages[loop_index|default(0) - 1].content ~ (messages[9] is defined) }}";
    assert_eq!(render(template), "3 A? B? C?<b ccFalse");
}

#[test]
fn scopes_are_those_of_jinja() {
    assert_eq!(render("{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}"), "1");
    let generation = "{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}";
    assert_eq!(render(generation), "1");
}

#[test]
fn python_s_methods_of_text_are_there() {
    assert_eq!(render("{{ '\n\nab\n'.lstrip('\\n').rstrip('\\n') }}|{{ 'xxabx'.strip('x') }}"), "ab|ab");
    assert_eq!(render("{{ 'a</think>b</think>c'.split('</think>')[-1] }}{{ 'a,b'.split(',')[0] }}"), "ca");
    assert_eq!(render("{{ 'abc'.removeprefix('a').removesuffix('c') }}{{ 'a=b=c'.partition('=')[2] }}"), "bb=c");
    assert_eq!(render("{{ 'abc'.startswith(('x', 'a')) }}{{ 'ab'.replace('a', 'c') }}"), "Truecb");
    assert_eq!(render("{{ {'a': 1}.get('b', 2) }}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}"), "2a1");
}

#[test]
fn values_print_as_in_python() {
    assert_eq!(
        render("{{ true }} {{ none }} {{ 1.0 }} {{ 1e-7 }} {{ 3 // 2 }} {{ [1, 'a', none] }}"),
        "True None 1.0 1e-07 1 [1, 'a', None]"
    );
    assert_eq!(render("{{ false|string + 2.50|string }}{{ 'a' ~ 1 ~ true }}"), "False2.5a1True");
    assert_eq!(
        render(
            "{{ 'x' is iterable }} {{ {} is sequence }} {{ none is iterable }} {{ {} is mapping }} {{ 'x' is string }}"
        ),
        "True True False True True"
    );
    assert_eq!(render("{{ missing }}|{% if missing %}{% endif %}{{ 'a' in ['a'] and 'b' not in ('a',) }}"), "|True");
}

#[test]
fn json_is_python_s_json() {
    let tools = json!({"b": 1, "a": ["é<&'\"\n\u{7f}", null, true, 1.0, 1e16], "c": {}, "d": []});
    let vars = json!({"x": tools});
    let dump = |template: &str| render_with(template, vars.clone()).unwrap();
    assert_eq!(
        dump("{{ x|tojson }}"),
        "{\"b\": 1, \"a\": [\"é<&'\\\"\\n\u{7f}\", null, true, 1.0, 1e+16], \"c\": {}, \"d\": []}"
    );
    assert_eq!(
        dump("{{ x|tojson(indent=2, sort_keys=true, ensure_ascii=true) }}"),
        "{\n  \"a\": [\n    \"\\u00e9<&'\\\"\\n\\u007f\",\n    null,\n    true,\n    1.0,\n    1e+16\n  ],\n  \"b\": 1,\n  \"c\": {},\n  \"d\": []\n}"
    );
    assert_eq!(dump("{{ {'k': 1, 'l': [1, 2]}|tojson(separators=(',', ':')) }}"), "{\"k\":1,\"l\":[1,2]}");
    assert!(render_with("{{ missing|tojson }}", Value::Null).is_err());
}

#[test]
fn text_is_trimmed_and_indented_as_in_python() {
    assert_eq!(render("{{ '{\n'|indent(4, first=true) }}|{{ 'a\n\nb'|indent }}|"), "    {\n|a\n\n    b|");
    assert_eq!(render("{{ 'a\n\nb'|indent('>', blank=true) }}|{{ ''|indent(2, true) }}|"), "a\n>\n>b|  |");
    assert_eq!(render("{{ 'a\r\nb\x0bc'|indent(1) }}"), "a\n b\n c");
    let vars = json!({"x": "\u{1f}\u{a0}a\u{1c}\u{85} "});
    let show = |template: &str| render_with(template, vars.clone()).unwrap();
    assert_eq!(show("{{ x|trim }}{{ x.strip() }}{{ x.lstrip()|length }}{{ x.rstrip()|length }}"), "aa43");
    assert_eq!(show("{{ '--a-'|trim('-') }}{{ 12|trim ~ 'x' }}"), "a12x");
}

#[test]
fn macros_may_recurse_as_deep_as_json_of_tools_goes() {
    let template = "\
{%- macro show(x) %}{% if x is mapping %}{% for k in x %}{{ k ~ ':' ~ show(x[k]) }}{% endfor %}
    {%- else %}{{ x }}{% endif %}{% endmacro %}{{ show(x) }}";
    let deep = (0..40).fold(json!("end"), |inner, _| json!({"a": inner}));
    let text = render_with(template, json!({"x": deep})).unwrap();
    assert_eq!(text, format!("{}end", "a:".repeat(40)));
}

#[test]
fn mistakes_and_refusals_carry_their_line() {
    let error = |template: &str| render_with(template, Value::Null).unwrap_err().to_string();
    assert_eq!(error("\n{{ raise_exception('No user query') }}"), "the chat template failed: No user query (line 2)");
    assert!(error("{{ 'a' + none }}").contains("+ operator"));
    assert!(error("{{ missing.a.b }}").contains("undefined"));
    assert!(error("{% include 'x' %}").contains("not found"));
    assert!(error("{% generation %}{% generation %}{% endgeneration %}{% endgeneration %}").contains("nested"));
}

#[test]
fn dates_can_be_pinned_and_variables_given() {
    let config = qwen_tune_data::TokensConfig {
        template_date: Some("2024-07-26".into()),
        template_vars: Map::from_iter([("effort".to_owned(), json!("low")), ("eos_token".to_owned(), json!("E"))]),
        ..Default::default()
    };
    let encoder = crate::fixture::encoder_with(
        "{{ strftime_now('%d %b %Y') }} {{ effort }} {{ eos_token }} {{ pad_token }}{{ bos_token is defined }}",
        config,
    );
    let text = encoder.render_chat(&messages(&[("user", "x")]), None, false, &Map::new()).unwrap();
    assert_eq!(text, "26 Jul 2024 low E <|endoftext|>False");
    let vars = Map::from_iter([("effort".to_owned(), json!("high"))]);
    assert!(encoder.render_chat(&messages(&[("user", "x")]), None, false, &vars).unwrap().contains("high"));
}

#[test]
fn reasoning_is_found_under_each_of_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let line = json!({"messages": [{"role": "assistant", "content": "x", "thinking": "t"}]}).to_string();
    let path = crate::fixture::write(dir.path(), "a.jsonl", &line);
    let encoder = std::sync::Arc::new(encoder(
        "{% generation %}{{ messages[0].reasoning_content ~ messages[0].thinking }}{% endgeneration %}",
    ));
    let source = qwen_tune_data::SourceConfig::new(path.to_str().unwrap());
    let dataset = qwen_tune_data::Dataset::open(&[source], encoder, &[]).unwrap();
    let (_, row) = dataset.samples().next_tokenised().unwrap().unwrap();
    assert_eq!(row.text, "tt");
}

#[test]
fn line_ends_of_windows_are_plain_ones() {
    assert_eq!(render("a\r\n{% if true %}\r\nb\r\n{% endif %}\rc\r\n"), "a\nb\nc");
}
