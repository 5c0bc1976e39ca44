//! The keys as a person reads them: in a terminal, and as the page `docs/KEYS.md`.

use std::fmt::Write;

use super::list::{Key, Keys, Section};

/// Columns of a line in a terminal.
const COLUMNS: usize = 100;

impl Keys {
    /// All keys, one line each, under their sections.
    pub fn overview(&self) -> String {
        let mut out = String::new();
        let short = |key: &Key, section: &Section| -> String {
            key.name
                .strip_prefix(&section.name)
                .map_or(key.name.as_str(), |name| name.trim_start_matches('.'))
                .to_owned()
        };
        for section in self.sections.iter().filter(|section| !section.keys.is_empty()) {
            if !section.name.is_empty() {
                let heading = format!("{}: {}", section.name, section.meaning.trim_end_matches('.'));
                let _ = writeln!(out, "\n{}", cut(&heading, COLUMNS));
            }
            let width = section.keys.iter().map(|key| short(key, section).chars().count()).max().unwrap_or(0);
            for key in &section.keys {
                let name = short(key, section);
                let default = key.default.as_deref().unwrap_or("(required)");
                let line = format!("  {name:<width$}  {:<12}  {}", cut(default, 12), key.meaning);
                let _ = writeln!(out, "{}", cut(&line, COLUMNS));
            }
        }
        out.trim_start_matches('\n').to_owned()
    }

    /// Everything about the keys whose names, or earlier names, begin with `prefix`; empty where there are none.
    pub fn entries(&self, prefix: &str) -> String {
        let prefix = prefix.trim_end_matches('.');
        let wanted = |key: &&Key| key.name.starts_with(prefix) || key.earlier.contains(&prefix);
        let keys = self.sections.iter().flat_map(|section| &section.keys).filter(wanted);
        keys.map(entry).collect::<Vec<_>>().join("\n")
    }

    /// The sections as Markdown: a heading and a table each.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        for section in self.sections.iter().filter(|section| !section.keys.is_empty()) {
            let name = if section.name.is_empty() { "Top of the file".into() } else { format!("`{}`", section.name) };
            let _ = writeln!(out, "### {name}\n");
            if !section.name.is_empty() {
                let _ = writeln!(out, "{}\n", section.meaning);
            }
            let _ = writeln!(out, "| key | type | default | meaning |\n|---|---|---|---|");
            for key in &section.keys {
                let _ = writeln!(out, "{}", row(key));
            }
            out.push('\n');
        }
        out
    }
}

/// The page `docs/KEYS.md`: all keys of both kinds of files.
pub fn page() -> String {
    format!(
        "# Keys of configuration files\n\n\
         <!-- Written by `hermesflow keys --markdown > docs/KEYS.md`; the doc comments in crates/hermesflow/src/config are its \
         source. -->\n\n\
         `hermesflow keys PREFIX` prints the same in a terminal. Behind a file, `key=value` changes a single key, such as \
         `hermesflow run scenes train.schedule.steps=100`. A key that a file leaves out has its default; a name that ends in \
         `[]` is a list. Earlier names of keys are still accepted.\n\n\
         Editors with a YAML language server complete and check the files of `configs/`, whose first line names their \
         schema; `hermesflow keys --schema > schema.json` writes it.\n\n\
         ## Run files\n\n\
         Read by `hermesflow run` and most commands. Examples: `configs/scenes.yaml`, `configs/released.yaml`, \
         `configs/paper.yaml`.\n\n{}\
         ## Pretraining files\n\n\
         Read by `hermesflow pretrain`. Example: `configs/pretrain-scenes.yaml`.\n\n{}",
        Keys::run().markdown(),
        Keys::pretrain().markdown().trim_end().to_owned() + "\n"
    )
}

/// Everything about a key, for a terminal.
fn entry(key: &Key) -> String {
    let mut out = match &key.default {
        Some(default) => format!("{} (default: {default})\n", key.name),
        None => format!("{} (required)\n", key.name),
    };
    out = wrapped(&out, "", "    ");
    let unit = key.unit.as_ref().map_or_else(String::new, |unit| format!("; unit: {unit}"));
    out += &wrapped(&format!("{}{unit}", key.kind), "    ", "    ");
    for (value, meaning) in &key.allowed {
        out += &wrapped(&format!("{value}: {meaning}"), "      ", "        ");
    }
    out += &wrapped(&key.meaning, "    ", "    ");
    if let Some(source) = &key.source {
        out += &wrapped(&format!("Source: {source}."), "    ", "    ");
    }
    if !key.earlier.is_empty() {
        out += &wrapped(&format!("Earlier name: {}", key.earlier.join(", ")), "    ", "    ");
    }
    out
}

/// A key as a row of a table.
fn row(key: &Key) -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let unit = key.unit.as_ref().map_or_else(String::new, |unit| format!("; {unit}"));
    let default = key.default.as_ref().map_or("required".into(), |default| format!("`{}`", cell(default)));
    let mut meaning = key.meaning.clone();
    for (value, what) in &key.allowed {
        let _ = write!(meaning, "<br>`{value}`: {what}");
    }
    if let Some(source) = &key.source {
        let _ = write!(meaning, "<br>*Source: {source}.*");
    }
    for earlier in &key.earlier {
        let _ = write!(meaning, "<br>Earlier name: `{earlier}`.");
    }
    format!("| `{}` | {}{unit} | {default} | {} |", key.name, key.kind, cell(&meaning))
}

/// A text of at most so many characters, with a mark where the rest was.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// A paragraph in lines of [`COLUMNS`].
fn wrapped(text: &str, first: &str, rest: &str) -> String {
    let mut out = String::new();
    let mut line = first.to_owned();
    let mut begun = false;
    for word in text.split_whitespace() {
        if begun && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            out.push_str(&line);
            out.push('\n');
            line = rest.to_owned();
            begun = false;
        }
        if begun {
            line.push(' ');
        }
        line.push_str(word);
        begun = true;
    }
    out.push_str(&line);
    out.push('\n');
    out
}
