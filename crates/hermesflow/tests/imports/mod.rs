//! Which files of a crate import which: an arrow from a file to the file in which the imported item is defined.
//!
//! A module that only declares or re-exports an item is no arrow's end: the arrow goes on to the definition. What a file
//! takes from the modules that hold it (the `mod.rs` of its folder, of the folder around that, and so on) draws no arrow,
//! nor does code that is built for tests alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, Macro, UseTree};

/// A module's path in its crate.
type Name = Vec<String>;

#[derive(Default)]
struct Module {
    file: PathBuf,
    defined: HashSet<String>,
    /// What `use` names, and the path that it stands for.
    aliases: HashMap<String, Name>,
    globs: Vec<Name>,
    /// All paths that its code has, imports included; a re-export that code never names is none of them.
    paths: BTreeSet<Name>,
}

/// Files that reach each other by their imports.
#[derive(Debug)]
pub struct Circle {
    /// The files, in order.
    pub files: Vec<PathBuf>,
    /// A line for every import between them.
    pub arrows: String,
}

/// The imports of one crate.
pub struct Imports {
    modules: HashMap<Name, Module>,
    arrows: BTreeMap<(PathBuf, PathBuf), BTreeSet<String>>,
}

impl Imports {
    /// Reads a crate from its root file.
    pub fn of(root: &Path) -> Self {
        let mut imports = Self { modules: HashMap::new(), arrows: BTreeMap::new() };
        let folder = root.parent().unwrap();
        imports.read_file(&Name::new(), root, folder);
        let names: Vec<Name> = imports.modules.keys().cloned().collect();
        for name in names {
            let module = &imports.modules[&name];
            let from = module.file.clone();
            let found: Vec<(PathBuf, String)> = (module.paths.iter())
                .filter_map(|path| imports.resolve(&name, path, &mut HashSet::new()))
                .filter(|(to, _)| {
                    *to != from && !(0..name.len()).any(|depth| imports.modules[&name[..depth]].file == *to)
                })
                .collect();
            for (to, item) in found {
                imports.arrows.entry((from.clone(), to)).or_default().insert(item);
            }
        }
        imports
    }

    /// Every arrow, and the names of what is imported.
    pub fn arrows(&self) -> impl Iterator<Item = (&Path, &Path, &BTreeSet<String>)> {
        self.arrows.iter().map(|((from, to), names)| (from.as_path(), to.as_path(), names))
    }

    /// The groups of files that reach each other.
    pub fn circles(&self) -> Vec<Circle> {
        let mut next: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
        self.arrows().for_each(|(from, to, _)| next.entry(from).or_default().push(to));
        let mut reached: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
        for from in next.keys().copied() {
            let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
            while let Some(file) = open.pop() {
                open.extend(next.get(file).into_iter().flatten().copied().filter(|end| seen.insert(*end)));
            }
            reached.insert(from, seen);
        }
        let reaches = |from: &Path, to: &Path| reached.get(from).is_some_and(|seen| seen.contains(to));
        let mut groups: BTreeSet<Vec<&Path>> = BTreeSet::new();
        for file in reached.keys().filter(|file| reaches(file, file)) {
            groups
                .insert(reached.keys().filter(|other| reaches(file, other) && reaches(other, file)).copied().collect());
        }
        let told = groups.into_iter().map(|group| {
            let inside = self.arrows().filter(|(from, to, _)| group.contains(from) && group.contains(to));
            let line = |(from, to, names): (&Path, &Path, &BTreeSet<String>)| {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                format!("  {} imports {} of {}\n", from.display(), names.join(", "), to.display())
            };
            let arrows = inside.map(line).collect();
            Circle { files: group.into_iter().map(Path::to_owned).collect(), arrows }
        });
        told.collect()
    }

    /// `folder` is where the files of the module's own modules lie.
    fn read_file(&mut self, name: &Name, file: &Path, folder: &Path) {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.read_items(name, file, folder, &parsed.items);
    }

    fn read_items(&mut self, name: &Name, file: &Path, folder: &Path, items: &[Item]) {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        for item in items.iter().filter(|item| !is_for_tests(attributes(item))) {
            if let Item::Mod(inner) = item {
                self.read_module(name, file, folder, inner);
                continue;
            }
            if let Item::Use(import) = item {
                let mut found = Found::default();
                found.take(Name::new(), &import.tree);
                module.aliases.extend(found.aliases.iter().cloned());
                // What is re-exported and not named in this module's code is an arrow of whoever imports it from here.
                if matches!(import.vis, syn::Visibility::Inherited) {
                    module.paths.extend(found.aliases.into_iter().map(|(_, path)| path));
                    module.paths.extend(found.globs.iter().cloned());
                }
                module.globs.extend(found.globs);
                continue;
            }
            module.defined.extend(defined(item));
            if let Item::Macro(called) = item {
                module.defined.extend(defined_by(&called.mac));
            }
            Code(&mut module.paths).visit_item(item);
        }
        self.modules.insert(name.clone(), module);
    }

    fn read_module(&mut self, parent: &Name, file: &Path, folder: &Path, item: &ItemMod) {
        let ident = item.ident.to_string();
        let name = [parent.clone(), vec![ident.clone()]].concat();
        let inside = folder.join(&ident);
        if let Some((_, items)) = &item.content {
            return self.read_items(&name, file, &inside, items);
        }
        let candidates = [folder.join(format!("{ident}.rs")), inside.join("mod.rs")];
        let found = candidates.iter().find(|path| path.is_file());
        self.read_file(
            &name,
            found.unwrap_or_else(|| panic!("{}: no file of module {ident}", file.display())),
            &inside,
        );
    }

    /// The file in which what a path names is defined, and its name; none for what belongs to another crate, and for a
    /// module as such.
    fn resolve(&self, at: &Name, path: &[String], seen: &mut HashSet<(Name, Name)>) -> Option<(PathBuf, String)> {
        // A name that stands for itself leads nowhere, however often it is followed.
        if seen.len() > 50 || !seen.insert((at.clone(), path.to_vec())) {
            return None;
        }
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => return self.resolve_in(&Name::new(), rest, seen),
            "self" => return self.resolve_in(at, rest, seen),
            "super" => return self.resolve_in(&at[..at.len().checked_sub(1)?].to_vec(), rest, seen),
            _ => {}
        }
        self.resolve_in(at, path, seen)
    }

    fn resolve_in(&self, at: &Name, path: &[String], seen: &mut HashSet<(Name, Name)>) -> Option<(PathBuf, String)> {
        let module = self.modules.get(at)?;
        let (first, rest) = path.split_first()?;
        if first == "*" {
            return (!module.defined.is_empty()).then(|| (module.file.clone(), "*".to_owned()));
        }
        if first == "super" {
            return self.resolve(at, path, seen);
        }
        let inner = [at.clone(), vec![first.clone()]].concat();
        if self.modules.contains_key(&inner) {
            return self.resolve_in(&inner, rest, seen);
        }
        if module.defined.contains(first) {
            return Some((module.file.clone(), first.clone()));
        }
        if let Some(alias) = module.aliases.get(first) {
            return self.resolve(at, &[alias.as_slice(), rest].concat(), seen);
        }
        module.globs.iter().find_map(|glob| {
            let without_star = &glob[..glob.len() - 1];
            self.resolve(at, &[without_star, path].concat(), seen)
        })
    }
}

/// What an import names.
#[derive(Default)]
struct Found {
    aliases: Vec<(String, Name)>,
    globs: Vec<Name>,
}

impl Found {
    fn take(&mut self, before: Name, tree: &UseTree) {
        let with = |name: &dyn ToString| [before.clone(), vec![name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.take(with(&path.ident), &path.tree),
            UseTree::Name(name) if name.ident == "self" => {
                self.aliases.push((before.last().cloned().unwrap_or_default(), before));
            }
            UseTree::Name(name) => self.aliases.push((name.ident.to_string(), with(&name.ident))),
            UseTree::Rename(rename) if rename.ident == "self" => self.aliases.push((rename.rename.to_string(), before)),
            UseTree::Rename(rename) => self.aliases.push((rename.rename.to_string(), with(&rename.ident))),
            UseTree::Glob(_) => self.globs.push(with(&"*")),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.take(before.clone(), tree)),
        }
    }
}

/// Collects the paths that code has.
struct Code<'a>(&'a mut BTreeSet<Name>);

impl<'ast> Visit<'ast> for Code<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.0.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        let mut found = Found::default();
        found.take(Name::new(), &import.tree);
        self.0.extend(found.aliases.into_iter().map(|(_, path)| path));
        self.0.extend(found.globs);
    }

    fn visit_item(&mut self, item: &'ast Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    /// The tokens of a macro are no syntax tree: its paths are words with `::` between them.
    fn visit_macro(&mut self, called: &'ast Macro) {
        self.visit_path(&called.path);
        let is_word = |word: &&str| word.starts_with(|c: char| c.is_alphabetic() || c == '_');
        let (mut path, mut joined) = (Name::new(), false);
        for word in called.tokens.to_string().replace("::", " :: ").split_whitespace().chain([""]) {
            let words: Vec<&str> = word.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').collect();
            for (number, word) in words.iter().enumerate() {
                if *word == "::" {
                    joined = !path.is_empty();
                    continue;
                }
                if (!joined || number > 0) && !path.is_empty() {
                    self.0.insert(std::mem::take(&mut path));
                }
                if is_word(word) {
                    path.push((*word).to_owned());
                }
                joined = false;
            }
        }
    }
}

fn defined(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => return item.ident.as_ref().map(ToString::to_string),
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// The items that stand between the braces of a macro.
fn defined_by(called: &Macro) -> Vec<String> {
    let words: Vec<String> = called.tokens.to_string().split_whitespace().map(str::to_owned).collect();
    let kinds = ["fn", "struct", "enum", "const", "static", "type", "trait"];
    let named = words.windows(2).filter(|pair| kinds.contains(&pair[0].as_str()));
    named.map(|pair| pair[1].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether an item is built for tests alone.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let mut test = false;
        let _ = attribute.parse_nested_meta(|meta| {
            test |= meta.path.is_ident("test");
            if meta.path.is_ident("all") {
                meta.parse_nested_meta(|inner| {
                    test |= inner.path.is_ident("test");
                    if inner.input.peek(syn::Token![=]) {
                        inner.value()?.parse::<syn::Lit>()?;
                    }
                    Ok(())
                })?;
            }
            Ok(())
        });
        test
    })
}
