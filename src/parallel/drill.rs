//! Failure drills: `FAVONIUS_DRILL=panic:1:5` makes rank 1 panic at step 5. So users can check on
//! their own cluster that a failing job ends correctly. `error` and `stall` are the other kinds.

/// A failure that the environment asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drill {
    Panic,
    Error,
    Stall,
}

/// The drill for `rank` at `step`, if the environment asks for one.
pub fn drill(rank: usize, step: u64) -> Option<Drill> {
    parse(&std::env::var("FAVONIUS_DRILL").ok()?, rank, step)
}

fn parse(text: &str, rank: usize, step: u64) -> Option<Drill> {
    let (kind, place) = text.split_once(':')?;
    let drill = match kind {
        "panic" => Drill::Panic,
        "error" => Drill::Error,
        "stall" => Drill::Stall,
        _ => return None,
    };
    (place == format!("{rank}:{step}")).then_some(drill)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_for_one_rank_at_one_step() {
        assert_eq!(parse("panic:1:5", 1, 5), Some(Drill::Panic));
        assert_eq!(parse("stall:1:5", 1, 6), None);
        assert_eq!(parse("error:0:5", 1, 5), None);
        assert_eq!(parse("nothing", 1, 5), None);
    }
}
