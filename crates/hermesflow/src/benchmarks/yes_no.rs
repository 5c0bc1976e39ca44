//! Which of yes and no a reply means, by the rules of the benchmarks' own scripts.

/// POPE's rule (`evaluate.py`): of the first sentence without commas, `No`, `no` or `not` among the words is no; all else
/// is yes.
pub fn pope(reply: &str) -> bool {
    let sentence = reply.split('.').next().unwrap_or_default().replace(',', "");
    !sentence.split(' ').any(|word| ["No", "not", "no"].contains(&word))
}

/// MME's rule (`calculation.py`): the whole reply in small letters, or else its first four characters, say yes or no; none
/// where they say neither.
pub fn mme(reply: &str) -> Option<bool> {
    let reply = reply.trim().to_lowercase();
    let beginning: String = reply.chars().take(4).collect();
    match () {
        () if beginning.contains("yes") => Some(true),
        () if beginning.contains("no") => Some(false),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_mean_what_the_published_scripts_say() {
        for (reply, yes) in [
            ("Yes, there is a dog.", true),
            ("No, there is none.", false),
            ("There is not a dog. Yes", false),
            ("There is a dog. No cat", true),
            ("Nothing here", true), // a word of its own, by the script
            ("no", false),
            ("NO", true), // by the script
            ("", true),
        ] {
            assert_eq!(pope(reply), yes, "{reply}");
        }
        for (reply, means) in [
            ("Yes.", Some(true)),
            (" yes, it is", Some(true)),
            ("No", Some(false)),
            ("NO!", Some(false)),
            ("not at all", Some(false)),
            ("The answer is yes", None),
            ("", None),
        ] {
            assert_eq!(mme(reply), means, "{reply}");
        }
    }
}
