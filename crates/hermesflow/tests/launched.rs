//! A program that was built for one process and is started as one of several says so, once, instead of doing the same work
//! in each.
#![cfg(not(feature = "mpi"))]
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::{Command, Output};

fn started(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hermesflow"));
    command.args(arguments).envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn one_of_several_processes_refuses_and_the_first_says_why() {
    let run = ["run", "scenes", "output=none", "data.root=none"];
    for (launcher, size, rank) in [
        ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("mpiexec", "PMI_SIZE", "PMI_RANK"),
        ("srun", "SLURM_NTASKS", "SLURM_PROCID"),
    ] {
        let process = |number: &str| started(&run, &[(size, "8"), (rank, number), ("SLURM_STEP_ID", "0")]);
        let first = process("0");
        let said = String::from_utf8_lossy(&first.stderr).into_owned();
        assert_eq!(first.status.code(), Some(1), "{said}");
        for part in [launcher, "8 processes", "built without MPI", "--features mpi"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let other = process("5");
        assert_eq!((other.status.code(), other.stderr.len(), other.stdout.len()), (Some(1), 0, 0));
        assert!(started(&["keys", "seed"], &[(size, "1"), (rank, "0")]).status.success(), "one process is one");
    }
    assert!(!std::path::Path::new("none").exists());
}
