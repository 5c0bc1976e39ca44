//! `${a.b.c}`: references inside a tree, as OmegaConf resolves them.
//!
//! A value that is one reference becomes what it refers to, whatever its type; inside a longer text single values are
//! put in. `${.a}` and `${..a}` count from the key's own section, `${oc.env:NAME,default}` is an environment variable,
//! references may be nested, and `\${` is meant literally.

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};
use serde_yaml_ng::{Mapping, Value};

/// The tree without references.
///
/// # Errors
/// Names the key that holds a reference to nothing, to itself, or of an unknown kind.
pub fn resolve(tree: &Value) -> Result<Value> {
    Resolver { tree, open: Vec::new(), left: LARGEST }.value("", tree)
}

/// Bytes of text, and values, that references may make: a few lines can ask for more than any memory holds.
const LARGEST: usize = 1 << 20;
/// References within references.
const DEEPEST: usize = 32;

struct Resolver<'t> {
    tree: &'t Value,
    /// How much may still be made.
    left: usize,
    /// The keys that are being resolved, outermost first.
    open: Vec<String>,
}

impl Resolver<'_> {
    /// A value at `key` without references.
    fn value(&mut self, key: &str, value: &Value) -> Result<Value> {
        self.make(key, 1)?;
        match value {
            Value::Mapping(map) => {
                let mut resolved = Mapping::new();
                for (name, inner) in map {
                    resolved.insert(name.clone(), self.value(&join(key, &name_text(name)), inner)?);
                }
                Ok(Value::Mapping(resolved))
            }
            Value::Sequence(list) => {
                let resolved =
                    list.iter().enumerate().map(|(at, inner)| self.value(&join(key, &at.to_string()), inner));
                Ok(Value::Sequence(resolved.collect::<Result<_>>()?))
            }
            Value::String(text) if text.contains("${") => self.text(key, text),
            other => Ok(other.clone()),
        }
    }

    /// A text with references.
    fn text(&mut self, key: &str, text: &str) -> Result<Value> {
        if let Some(inner) = text.strip_prefix("${").and_then(|rest| reference_end(rest).map(|end| (rest, end))) {
            let (rest, end) = inner;
            if end + 1 == rest.len() {
                return self.reference(key, &rest[..end]);
            }
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            if let Some(before) = before.strip_suffix('\\') {
                out += before;
                out += "${";
                rest = &from[2..];
                continue;
            }
            let inner = &from[2..];
            let end = reference_end(inner).with_context(|| format!("{key}: {text:?} has a ${{ without its }}"))?;
            out += before;
            let name = &inner[..end];
            let put = self.reference(key, name)?;
            let put =
                scalar(&put).with_context(|| format!("{key}: ${{{name}}} inside a text is not a single value"))?;
            self.make(key, put.len())?;
            out += &put;
            rest = &inner[end + 1..];
        }
        out += rest;
        Ok(Value::String(out))
    }

    /// Counts what is made.
    fn make(&mut self, key: &str, size: usize) -> Result<()> {
        let left = self.left.checked_sub(size);
        self.left = left.with_context(|| {
            format!("{key}: its references make more than {LARGEST} values and letters; write the value itself")
        })?;
        Ok(())
    }

    /// What the inside of `${…}` stands for.
    fn reference(&mut self, key: &str, inside: &str) -> Result<Value> {
        let nested = inside.matches("${").count();
        ensure!(nested <= DEEPEST, "{key}: {nested} references within each other; write the value itself");
        let inside = if inside.contains("${") {
            let name = self.text(key, inside)?;
            scalar(&name).with_context(|| format!("{key}: the name ${{{inside}}} is not a single value"))?
        } else {
            inside.to_owned()
        };
        let inside = inside.trim();
        if let Some((kind, argument)) = inside.split_once(':') {
            ensure!(
                kind == "oc.env",
                "{key}: ${{{inside}}} is of a kind that is not known here; write the value itself"
            );
            return environment(argument).with_context(|| {
                format!("{key}: ${{{inside}}}: this environment variable is not set; set it or write the value itself")
            });
        }
        let target = absolute(key, inside).with_context(|| format!("{key}: ${{{inside}}} leads out of the file"))?;
        self.at(&target)?.with_context(|| format!("{key}: ${{{inside}}} refers to {target}, which is not in the file"))
    }

    /// The resolved value at a key, if there is one.
    fn at(&mut self, target: &str) -> Result<Option<Value>> {
        if self.open.iter().any(|open| open == target) {
            bail!("{target}: refers to itself: {} → {target}", self.open.join(" → "));
        }
        ensure!(
            self.open.len() < DEEPEST,
            "{target}: more than {DEEPEST} references lead to it; write the value itself"
        );
        self.open.push(target.to_owned());
        let mut place = Cow::Borrowed(self.tree);
        let mut path = String::new();
        for part in target.split('.') {
            if let Value::String(text) = &*place
                && text.contains("${")
            {
                place = Cow::Owned(self.text(&path, &text.clone())?);
            }
            let next = match &place {
                Cow::Borrowed(place) => child(place, part).map(Cow::Borrowed),
                Cow::Owned(place) => child(place, part).cloned().map(Cow::Owned),
            };
            let Some(next) = next else {
                self.open.pop();
                return Ok(None);
            };
            place = next;
            path = join(&path, part);
        }
        let value = self.value(target, &place)?;
        self.open.pop();
        Ok(Some(value))
    }
}

/// The dotted key of a part inside a section.
pub fn join(section: &str, part: &str) -> String {
    if section.is_empty() { part.to_owned() } else { format!("{section}.{part}") }
}

/// A key of a mapping as text.
pub fn name_text(name: &Value) -> String {
    scalar(name).unwrap_or_default()
}

/// The part of a section or list under a name.
pub fn child<'v>(value: &'v Value, part: &str) -> Option<&'v Value> {
    match value {
        Value::Mapping(map) => map.iter().find(|(name, _)| name_text(name) == part).map(|(_, inner)| inner),
        Value::Sequence(list) => list.get(part.parse::<usize>().ok()?),
        _ => None,
    }
}

/// A single value as text, as Python writes it.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("None".into()),
        Value::Bool(flag) => Some(if *flag { "True" } else { "False" }.into()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// Where the `}` is that closes a reference, from behind its `${`.
fn reference_end(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The whole key that a reference at `key` means.
fn absolute(key: &str, reference: &str) -> Option<String> {
    let dotted = reference.replace('[', ".").replace(']', "");
    let name = dotted.trim_start_matches('.');
    let up = if reference.starts_with('.') { dotted.len() - name.len() } else { return Some(dotted) };
    let parts: Vec<&str> = key.split('.').collect();
    let section = parts.get(..parts.len().checked_sub(up)?)?.join(".");
    Some(join(&section, name))
}

/// `NAME` or `NAME,default`.
fn environment(argument: &str) -> Option<Value> {
    let (name, default) = match argument.split_once(',') {
        Some((name, default)) => (name.trim(), Some(default.trim())),
        None => (argument.trim(), None),
    };
    let text = std::env::var(name).ok().or_else(|| default.map(str::to_owned))?;
    Some(match text.as_str() {
        "null" => Value::Null,
        text => Value::String(text.trim_matches(['\'', '"']).to_owned()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn resolved(yaml: &str) -> Result<Value> {
        resolve(&serde_yaml_ng::from_str(yaml).unwrap())
    }

    fn same(yaml: &str, expected: &str) {
        assert_eq!(resolved(yaml).unwrap(), serde_yaml_ng::from_str::<Value>(expected).unwrap(), "{yaml}");
    }

    fn problem(yaml: &str) -> String {
        format!("{:#}", resolved(yaml).unwrap_err())
    }

    #[test]
    fn a_reference_takes_the_type_of_what_it_refers_to() {
        same("{a: {b: 2e-5}, c: '${a.b}', d: ['${c}', '${a}']}", "{a: {b: 2e-5}, c: 2e-5, d: [2e-5, {b: 2e-5}]}");
        same("{a: [x, y], b: '${a[1]} ${a.0}'}", "{a: [x, y], b: y x}");
    }

    #[test]
    fn inside_a_text_values_are_put_in() {
        let yaml = "{name: run, n: 3, out: '${name}-v${n}/${b.flag}', b: {flag: true}, plain: 'a \\${n} }'}";
        same(yaml, "{name: run, n: 3, out: run-v3/True, b: {flag: true}, plain: 'a ${n} }'}");
    }

    #[test]
    fn relative_nested_and_through_other_references() {
        same("{a: {b: 1, c: '${.b}', d: {e: '${..b}'}}}", "{a: {b: 1, c: 1, d: {e: 1}}}");
        same(
            "{sizes: {small: 1, large: 2}, which: large, n: '${sizes.${which}}'}",
            "{sizes: {small: 1, large: 2}, which: large, n: 2}",
        );
        same("{a: {b: 1}, c: '${a}', d: '${c.b}'}", "{a: {b: 1}, c: {b: 1}, d: 1}");
    }

    #[test]
    fn environment_variables() {
        same("{a: '${oc.env:HERMESFLOW_NO_SUCH_VARIABLE,fallback}/x'}", "{a: fallback/x}");
        assert!(problem("{a: {b: '${oc.env:HERMESFLOW_NO_SUCH_VARIABLE}'}}").contains("a.b: "));
        assert!(problem("{a: '${now:%Y}'}").contains("a: ${now:%Y} is of a kind"));
    }

    #[test]
    fn what_leads_nowhere_names_both_keys() {
        let message = problem("{lr_scheduler: {learning_rate: '${optimizer.lr}'}, optimizer: {}}");
        assert!(message.contains("lr_scheduler.learning_rate: ${optimizer.lr} refers to optimizer.lr"), "{message}");
        assert!(problem("{a: {b: '${....c}'}}").contains("a.b: ${....c} leads out"));
        assert!(problem("{a: 'x ${b'}").contains("without its }"));
        assert!(problem("{a: 'x ${b}', b: [1]}").contains("a: ${b} inside a text"));
    }

    #[test]
    fn what_grows_without_end_is_refused() {
        let doubling = |count: usize, last: &str| {
            let lines = (1..count).map(|n| format!("a{n}: '${{a{}}} ${{a{}}}'\n", n - 1, n - 1));
            format!("a0: {last}\n{}", lines.collect::<String>())
        };
        assert!(problem(&doubling(31, "some words")).contains("references make more than"));
        assert!(problem(&doubling(40, "x")).contains("more than"));
        let lists: String = (1..30).map(|n| format!("b{n}: ['${{b{}}}', '${{b{}}}']\n", n - 1, n - 1)).collect();
        assert!(problem(&format!("b0: [1]\n{lists}")).contains("references make more than"));
        let deep = format!("{{a: '{}x{}'}}", "${".repeat(500), "}".repeat(500));
        assert!(problem(&deep).contains("within each other"));
    }

    #[test]
    fn circles_are_shown() {
        assert!(problem("{a: '${b}', b: '${c}', c: '${b}'}").contains("b: refers to itself: b → c → b"));
        assert!(problem("{a: '${a}'}").contains("a: refers to itself"));
        assert!(problem("{a: {b: '${a}'}}").contains("refers to itself: a → a"));
        assert!(problem("{a: '${a.b}'}").contains("refers to itself"));
    }
}
