//! What a picture of the scenes world shows, and which pictures belong to which split.
//!
//! A picture is 64×64 pixels, a 4×4 grid of 16-pixel cells, at most one shape per cell. The
//! *combination* of a scene is the sorted list of its groups (count, colour, shape) with the relation
//! between two of them; a stable hash of it decides the split, so that held-out combinations never
//! occur in training.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Pixels per side of a picture.
pub const SIDE: usize = 64;
/// Cells per side.
pub const GRID: usize = 4;
/// Pixels per side of a cell.
pub const CELL: usize = SIDE / GRID;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Its word in captions.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
            /// The one that a word means.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.word() == word)
            }
        }
    };
}

words! {
    /// The outline of an object.
    Shape {
        /// ●
        Circle = "circle",
        /// ■
        Square = "square",
        /// ▲
        Triangle = "triangle",
        /// ✚
        Cross = "cross",
    }
}
words! {
    /// The colour of an object.
    Colour {
        /// (220, 40, 40)
        Red = "red",
        /// (40, 170, 70)
        Green = "green",
        /// (50, 90, 220)
        Blue = "blue",
        /// (240, 210, 50)
        Yellow = "yellow",
        /// (150, 60, 180)
        Purple = "purple",
        /// (240, 140, 40)
        Orange = "orange",
    }
}
words! {
    /// The colour behind the objects.
    Background {
        /// (245, 245, 245)
        White = "white",
        /// (150, 150, 150)
        Grey = "grey",
        /// (25, 25, 25)
        Black = "black",
    }
}
words! {
    /// How large an object is.
    Size {
        /// 8 pixels
        Small = "small",
        /// 14 pixels
        Large = "large",
    }
}
words! {
    /// Where the first thing is, seen from the second.
    Relation {
        /// To the left.
        Left = "left",
        /// To the right.
        Right = "right",
        /// Higher.
        Above = "above",
        /// Lower.
        Below = "below",
    }
}

impl Colour {
    /// Red, green, blue.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [220, 40, 40],
            Self::Green => [40, 170, 70],
            Self::Blue => [50, 90, 220],
            Self::Yellow => [240, 220, 50],
            Self::Purple => [150, 50, 180],
            Self::Orange => [245, 140, 35],
        }
    }
}

impl Background {
    /// Red, green, blue.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::White => [245, 245, 245],
            Self::Grey => [150, 150, 150],
            Self::Black => [25, 25, 25],
        }
    }
}

impl Size {
    /// Pixels from edge to edge.
    pub fn pixels(self) -> usize {
        match self {
            Self::Small => 8,
            Self::Large => 14,
        }
    }
}

impl Relation {
    /// The same fact, seen from the other thing.
    pub fn opposite(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }
}

/// One thing in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its outline.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// Its size.
    pub size: Size,
    /// Its row of the grid, from the top.
    pub row: usize,
    /// Its column of the grid, from the left.
    pub column: usize,
}

/// Equal objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Group {
    /// How many.
    pub count: usize,
    /// Their colour.
    pub colour: Colour,
    /// Their outline.
    pub shape: Shape,
    /// Their size.
    pub size: Size,
}

/// GenEval's categories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// One object.
    SingleObject,
    /// Two objects, both there.
    TwoObjects,
    /// Several equal objects.
    Counting,
    /// The colour of what is there.
    Colors,
    /// Where one thing is, seen from another.
    Position,
    /// Which attribute belongs to which object.
    AttributeBinding,
}

impl Category {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::SingleObject, Self::TwoObjects, Self::Counting, Self::Colors, Self::Position, Self::AttributeBinding];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::SingleObject => "single object",
            Self::TwoObjects => "two objects",
            Self::Counting => "counting",
            Self::Colors => "colors",
            Self::Position => "position",
            Self::AttributeBinding => "attribute binding",
        }
    }
}

/// What kind of picture a scene is; it decides what its captions mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One object.
    Single,
    /// Two different objects, in a row or a column: their relation is said.
    Relation,
    /// Two to four equal objects.
    Counting,
    /// A small and a large object.
    Binding,
    /// Two equal objects and another one.
    Mixed,
}

/// A picture, before it is drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scene {
    /// What kind it is.
    pub kind: Kind,
    /// The colour behind.
    pub background: Background,
    /// What is there, group by group.
    pub objects: Vec<Object>,
    /// Equal objects together, in the order of the captions.
    pub groups: Vec<Group>,
    /// Where group 0 is, seen from group 1.
    pub relation: Option<Relation>,
}

/// Which scenes may be used for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// For training.
    Train,
    /// For choosing settings.
    Dev,
    /// For nothing but the final figures.
    HeldOut,
}

impl Split {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Dev => "dev",
            Self::HeldOut => "heldout",
        }
    }
}

impl Scene {
    /// What decides the split: the groups without their sizes, in a fixed order.
    pub fn combination(&self) -> String {
        let mut parts: Vec<String> =
            self.groups.iter().map(|g| format!("{} {} {}", g.count, g.colour.word(), g.shape.word())).collect();
        parts.sort();
        parts.join(" + ")
    }

    /// The split that the combination belongs to: 75 % train, 10 % dev, 15 % held out.
    pub fn split(&self) -> Split {
        match fnv(self.combination().as_bytes()) % 100 {
            0..15 => Split::HeldOut,
            15..25 => Split::Dev,
            _ => Split::Train,
        }
    }
}

/// FNV-1a with a final mix: stable, and good enough to split by.
fn fnv(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

/// Scene number `index` of a split's endless stream.
pub fn scene(split: Split, seed: u64, index: u64) -> Scene {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    key[16] = split as u8;
    let mut random = ChaCha8Rng::from_seed(key);
    loop {
        let scene = draw(&mut random);
        if scene.split() == split {
            return scene;
        }
    }
}

/// Number `index` of an endless stream of crowded pictures: each cell holds a random object with
/// probability 0.6. They belong to no split and have no caption; an image tokenizer learns shapes from
/// them several times faster than from scenes, which are mostly background.
pub fn crowd(seed: u64, index: u64) -> Scene {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    key[16] = u8::MAX;
    let random = &mut ChaCha8Rng::from_seed(key);
    let background = one(Background::ALL, random);
    let mut objects = Vec::new();
    for cell in 0..GRID * GRID {
        if random.random_bool(0.6) {
            let (row, column) = (cell / GRID, cell % GRID);
            let (shape, colour) = (one(Shape::ALL, random), one(Colour::ALL, random));
            objects.push(Object { shape, colour, size: one(Size::ALL, random), row, column });
        }
    }
    Scene { kind: Kind::Mixed, background, objects, groups: vec![], relation: None }
}

fn one<T: Copy>(all: &[T], random: &mut ChaCha8Rng) -> T {
    all.choose(random).copied().expect("the lists of words are not empty")
}

fn draw(random: &mut ChaCha8Rng) -> Scene {
    let kind = match random.random_range(0..100) {
        0..18 => Kind::Single,
        18..50 => Kind::Relation,
        50..70 => Kind::Counting,
        70..85 => Kind::Binding,
        _ => Kind::Mixed,
    };
    let background = one(Background::ALL, random);
    let group = |count, random: &mut ChaCha8Rng| Group {
        count,
        colour: one(Colour::ALL, random),
        shape: one(Shape::ALL, random),
        size: one(Size::ALL, random),
    };
    let mut groups = match kind {
        Kind::Single => vec![group(1, random)],
        Kind::Counting => vec![group(random.random_range(2..=4), random)],
        Kind::Relation | Kind::Binding => vec![group(1, random), group(1, random)],
        Kind::Mixed => vec![group(2, random), group(1, random)],
    };
    if groups.len() == 2 {
        while (groups[0].colour, groups[0].shape) == (groups[1].colour, groups[1].shape) {
            groups[1] = group(groups[1].count, random);
        }
    }
    if kind == Kind::Binding {
        groups[1].size = if groups[0].size == Size::Small { Size::Large } else { Size::Small };
    }
    let (cells, relation) = match kind {
        Kind::Relation => related_cells(random),
        _ => {
            let mut cells: Vec<(usize, usize)> = (0..GRID * GRID).map(|at| (at / GRID, at % GRID)).collect();
            cells.shuffle(random);
            (cells, None)
        }
    };
    let mut cells = cells.into_iter();
    let mut objects = Vec::new();
    for group in &groups {
        for (row, column) in cells.by_ref().take(group.count) {
            objects.push(Object { shape: group.shape, colour: group.colour, size: group.size, row, column });
        }
    }
    Scene { kind, background, objects, groups, relation }
}

/// Two cells in one row or one column, at least two apart or neighbours, and how the first is seen
/// from the second.
fn related_cells(random: &mut ChaCha8Rng) -> (Vec<(usize, usize)>, Option<Relation>) {
    let lane = random.random_range(0..GRID);
    let first = random.random_range(0..GRID);
    let second = (first + random.random_range(1..GRID)) % GRID;
    let before = first < second;
    if random.random() {
        let relation = if before { Relation::Left } else { Relation::Right };
        (vec![(lane, first), (lane, second)], Some(relation))
    } else {
        let relation = if before { Relation::Above } else { Relation::Below };
        (vec![(first, lane), (second, lane)], Some(relation))
    }
}
