//! Whether a launcher started this process as one of several, by the variables that it sets.

/// How this process was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// The program that started it.
    pub launcher: &'static str,
    /// How many processes it started.
    pub processes: usize,
    /// The number of this one, from 0.
    pub rank: usize,
}

/// Launchers: their names, and their variables for the number of processes and for the number of this one.
///
/// Slurm sets its number of tasks in a batch script and in an interactive shell, too, where one process runs that no `srun`
/// started; that one has no number of a task, or belongs to a step of its own, whose number is among the highest.
const LAUNCHERS: [(&str, &str, &str); 3] = [
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("mpiexec", "PMI_SIZE", "PMI_RANK"),
    ("srun", "SLURM_NTASKS", "SLURM_PROCID"),
];

/// Slurm's numbers of steps that no `srun` of the user began, and higher.
const SPECIAL_STEPS: usize = 0xffff_fff0;

/// The launcher that started this process as one of several; `None` where it runs on its own.
pub fn launched() -> Option<Launch> {
    of(|name| std::env::var(name).ok())
}

fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Launch> {
    LAUNCHERS.into_iter().find_map(|(launcher, processes, rank)| {
        let number = |name: &str| variable(name)?.parse::<usize>().ok();
        let (processes, rank) = (number(processes)?, number(rank)?);
        let is_step = || number("SLURM_STEP_ID").is_some_and(|step| step < SPECIAL_STEPS);
        (processes > 1 && (launcher != "srun" || is_step())).then_some(Launch { launcher, processes, rank })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Option<Launch> {
        of(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        let launch = |launcher, processes, rank| Some(Launch { launcher, processes, rank });
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")]), launch("mpirun", 4, 3));
        assert_eq!(with(&[("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")]), None);
        assert_eq!(with(&[("PMI_SIZE", "2"), ("PMI_RANK", "0")]), launch("mpiexec", 2, 0));
        let step = |step| with(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "5"), ("SLURM_STEP_ID", step)]);
        assert_eq!(step("0"), launch("srun", 8, 5));
        // The batch script itself, and an interactive shell, of which there is one each.
        assert_eq!((step("batch"), step("4294967291"), step("4294967290")), (None, None, None));
        assert_eq!(with(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(with(&[("SLURM_NTASKS", "8")]), None);
    }
}
