//! The contents of a picture of the scenes world, and its split.
//!
//! A picture has 64×64 pixels: a 4×4 grid of 16-pixel cells with at most one shape per cell. The *combination* of a
//! scene is the sorted list of its groups (count, colour, shape). A stable hash of the combination decides the split,
//! so no combination of the held-out split occurs in training.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The side of a picture, in pixels.
pub const SIDE: usize = 64;
/// The side of the grid, in cells.
pub const GRID: usize = 4;
/// The side of a cell, in pixels.
pub const CELL: usize = SIDE / GRID;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl $name {
            /// All values, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The English word for this value in captions.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
            /// The value whose word this is, in lower case; `None` if there is none.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.word() == word)
            }
        }
    };
}

words! {
    /// The shape of an object.
    Shape {
        /// A disc: ●
        Circle = "circle",
        /// A filled square: ■
        Square = "square",
        /// A triangle that points up: ▲
        Triangle = "triangle",
        /// A plus sign with thick arms: ✚
        Cross = "cross",
    }
}
words! {
    /// The colour of an object.
    Colour {
        /// RGB (220, 40, 40)
        Red = "red",
        /// RGB (40, 170, 70)
        Green = "green",
        /// RGB (50, 90, 220)
        Blue = "blue",
        /// RGB (240, 220, 50)
        Yellow = "yellow",
        /// RGB (150, 50, 180)
        Purple = "purple",
        /// RGB (245, 140, 35)
        Orange = "orange",
    }
}
words! {
    /// The colour of the background.
    Background {
        /// RGB (245, 245, 245)
        White = "white",
        /// RGB (150, 150, 150)
        Grey = "grey",
        /// RGB (25, 25, 25)
        Black = "black",
    }
}
words! {
    /// The size of an object.
    Size {
        /// 8 pixels from edge to edge
        Small = "small",
        /// 14 pixels from edge to edge
        Large = "large",
    }
}
words! {
    /// Where the first of two objects is, relative to the second.
    Relation {
        /// The first is to the left of the second.
        Left = "left",
        /// The first is to the right of the second.
        Right = "right",
        /// The first is above the second.
        Above = "above",
        /// The first is below the second.
        Below = "below",
    }
}

impl Colour {
    /// Red, green and blue, from 0 to 255.
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
    /// Red, green and blue, from 0 to 255.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::White => [245, 245, 245],
            Self::Grey => [150, 150, 150],
            Self::Black => [25, 25, 25],
        }
    }
}

impl Size {
    /// Width and height of an object of this size, in pixels.
    pub fn pixels(self) -> usize {
        match self {
            Self::Small => 8,
            Self::Large => 14,
        }
    }
}

impl Relation {
    /// The same relation with the two objects exchanged.
    pub fn opposite(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }
}

/// An object of a scene: one shape in one cell of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// The object's shape.
    pub shape: Shape,
    /// The object's colour.
    pub colour: Colour,
    /// The object's size.
    pub size: Size,
    /// The row of the object's cell, from 0 at the top.
    pub row: usize,
    /// The column of the object's cell, from 0 at the left.
    pub column: usize,
}

/// The equal objects of a scene: those of one shape, colour and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Group {
    /// The number of objects.
    pub count: usize,
    /// The colour of each.
    pub colour: Colour,
    /// The shape of each.
    pub shape: Shape,
    /// The size of each.
    pub size: Size,
}

/// The categories of GenEval (arXiv 2310.11513).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// One object is there.
    SingleObject,
    /// Two different objects are both there.
    TwoObjects,
    /// The stated number of objects is there.
    Counting,
    /// An object, or the background, has the stated colour.
    Colors,
    /// One object has the stated position relative to another.
    Position,
    /// Each object has its own attributes and not the other's.
    AttributeBinding,
}

impl Category {
    /// All categories, in GenEval's order.
    pub const ALL: [Self; 6] =
        [Self::SingleObject, Self::TwoObjects, Self::Counting, Self::Colors, Self::Position, Self::AttributeBinding];

    /// The category's name in tables.
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

/// The kind of a scene, which decides how many objects it has and what its captions mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SceneKind {
    /// One object.
    Single,
    /// Two different objects in one row or one column; captions state their relation.
    Relation,
    /// Two to four equal objects.
    Counting,
    /// A small and a large object.
    Binding,
    /// Two equal objects and a different one.
    Mixed,
}

/// The contents of a picture, before it is drawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scene {
    /// The kind of scene.
    pub kind: SceneKind,
    /// The colour of the background.
    pub background: Background,
    /// All objects, ordered by group.
    pub objects: Vec<Object>,
    /// The groups of equal objects, in the order in which captions mention them.
    pub groups: Vec<Group>,
    /// Where group 0 is relative to group 1; only in scenes of the kind [`SceneKind::Relation`].
    pub relation: Option<Relation>,
}

/// The part of the world that a scene belongs to; no combination of objects is in two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Scenes to train on: 75 % of all combinations.
    Train,
    /// Scenes to choose settings by: 10 %.
    Dev,
    /// Scenes for final figures only: 15 %.
    HeldOut,
}

impl Split {
    /// The split's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Dev => "dev",
            Self::HeldOut => "heldout",
        }
    }
}

impl Scene {
    /// The text whose hash decides the split: the groups without their sizes, sorted.
    pub fn combination(&self) -> String {
        let mut parts: Vec<String> =
            self.groups.iter().map(|g| format!("{} {} {}", g.count, g.colour.word(), g.shape.word())).collect();
        parts.sort();
        parts.join(" + ")
    }

    /// The split that the scene's combination belongs to.
    pub fn split(&self) -> Split {
        match fnv(self.combination().as_bytes()) % 100 {
            0..15 => Split::HeldOut,
            15..25 => Split::Dev,
            _ => Split::Train,
        }
    }
}

/// FNV-1a, 64 bits, followed by a mixing step: a hash that never changes and whose last digits are even enough to split
/// by.
fn fnv(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

/// Scene number `index` (from 0) of the endless stream of a split; the same arguments give the same scene.
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

/// Picture number `index` (from 0) of an endless stream of crowded pictures: each cell holds a random object with
/// probability 0.6. These have no split and no caption. An image tokenizer learns shapes from them several times faster
/// than from scenes, which are mostly background.
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
    Scene { kind: SceneKind::Mixed, background, objects, groups: vec![], relation: None }
}

fn one<T: Copy>(all: &[T], random: &mut ChaCha8Rng) -> T {
    all.choose(random).copied().expect("the lists of words are not empty")
}

fn draw(random: &mut ChaCha8Rng) -> Scene {
    let kind = match random.random_range(0..100) {
        0..18 => SceneKind::Single,
        18..50 => SceneKind::Relation,
        50..70 => SceneKind::Counting,
        70..85 => SceneKind::Binding,
        _ => SceneKind::Mixed,
    };
    let background = one(Background::ALL, random);
    let group = |count, random: &mut ChaCha8Rng| Group {
        count,
        colour: one(Colour::ALL, random),
        shape: one(Shape::ALL, random),
        size: one(Size::ALL, random),
    };
    let mut groups = match kind {
        SceneKind::Single => vec![group(1, random)],
        SceneKind::Counting => vec![group(random.random_range(2..=4), random)],
        SceneKind::Relation | SceneKind::Binding => vec![group(1, random), group(1, random)],
        SceneKind::Mixed => vec![group(2, random), group(1, random)],
    };
    if groups.len() == 2 {
        while (groups[0].colour, groups[0].shape) == (groups[1].colour, groups[1].shape) {
            groups[1] = group(groups[1].count, random);
        }
    }
    if kind == SceneKind::Binding {
        groups[1].size = if groups[0].size == Size::Small { Size::Large } else { Size::Small };
    }
    let (cells, relation) = match kind {
        SceneKind::Relation => related_cells(random),
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

/// Two different cells of one row or one column, and where the first is relative to the second.
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
