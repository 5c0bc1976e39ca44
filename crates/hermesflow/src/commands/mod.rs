//! One file per command: what it takes (`Args`), what it does (`run`), and the function behind it, which
//! `run` and `demo` call too.

pub mod answer;
pub mod ask;
pub mod caption;
pub mod controls;
pub mod demo;
pub mod eval;
pub mod imagine;
pub mod pair;
pub mod pretrain;
pub mod run;
pub mod scenes;
pub mod train;
pub mod verify;
