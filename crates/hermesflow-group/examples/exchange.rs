//! How fast processes add up a large row and bring it together, beside copying it:
//! `mpirun -n 2 target/release/examples/exchange [MILLIONS]`.

use std::time::Instant;

use hermesflow_group::{Group, Result};

fn main() -> Result<()> {
    let group = Group::join()?;
    let millions: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(64);
    let (mut row, mut copy) = (vec![1.0; millions * 1_000_000], vec![0.0; millions * 1_000_000]);
    let mut best = [f64::INFINITY; 3];
    for round in 0..5 {
        let value = (round + 1) as f32;
        row.fill(value);
        let timed = |best: &mut f64, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
            group.meet()?;
            let began = Instant::now();
            work()?;
            *best = best.min(began.elapsed().as_secs_f64());
            Ok(())
        };
        timed(&mut best[0], &mut || {
            copy.copy_from_slice(&row);
            Ok(())
        })?;
        timed(&mut best[1], &mut || group.sum_to_shares(&mut row, 0).map(drop))?;
        timed(&mut best[2], &mut || group.join_shares(&mut row, 0))?;
        let expected = value * group.size() as f32;
        assert!(row.iter().all(|number| *number == expected), "a wrong sum");
    }
    if group.is_writer() {
        let bytes = 4e6 * millions as f64;
        let [copying, summing, joining] = best;
        println!(
            "{} processes, {:.0} MB each: copied at {:.2} GB/s; added up in {:.1} ms ({:.2} GB/s), brought together in {:.1} ms \
             ({:.2} GB/s)",
            group.size(),
            bytes / 1e6,
            bytes / 1e9 / copying,
            1e3 * summing,
            bytes / 1e9 / summing,
            1e3 * joining,
            bytes / 1e9 / joining,
        );
    }
    group.finish();
    Ok(())
}
