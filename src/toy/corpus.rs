//! Chats and preference pairs that ask and answer the questions of [`super::questions`].
//!
//! The answers in the chats are of mixed quality: polite questions mostly get good answers, curt
//! questions mostly bad ones. So SFT learns both, and DPO has something to improve.

use std::collections::BTreeSet;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::questions::{self, Kind, Question};

const TRAIN_CHATS: usize = 4000;
const TEST_CHATS: usize = 160;
const TRAIN_PAIRS: usize = 1200;
const TEST_PAIRS: usize = 160;
/// Most facts of one kind.
const FACTS_A_KIND: usize = 20;

/// The share of the combinations of each kind that is kept for the test splits.
const HELD_OUT: f64 = 0.1;
/// The share of chats with a second question.
const SECOND_TURN: f64 = 0.2;
/// The shares of good answers in the chats: to a plain or polite question, and to a curt one.
const GOOD_WHEN_POLITE: f64 = 0.9;
const GOOD_WHEN_CURT: f64 = 0.2;

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
}

/// A conversation in which user and assistant alternate.
pub type Chat = Vec<Message>;

/// One prompt with a good and a bad answer. `chosen` and `rejected` are whole conversations.
#[derive(Debug, Clone)]
pub struct Preference {
    pub prompt: String,
    pub chosen: Chat,
    pub rejected: Chat,
    /// Quality from 0 to 10.
    pub score_chosen: f64,
    pub score_rejected: f64,
}

/// All rows of the demo.
#[derive(Debug)]
pub struct Corpus {
    pub train_chats: Vec<Chat>,
    pub test_chats: Vec<Chat>,
    pub train_pairs: Vec<Preference>,
    pub test_pairs: Vec<Preference>,
    /// One held-out question of each kind, alternately plain and curt.
    pub questions: Vec<String>,
    /// Held-out questions with a right and a false answer.
    pub facts: Vec<Fact>,
}

/// A held-out question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    pub question: String,
    /// The right answer, as a sentence.
    pub right: String,
    /// A false sentence of the same form.
    pub wrong: String,
}

/// The style of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Courteous, direct and true.
    Good,
    /// Courteous, but not true.
    Wrong,
    /// An insult instead of an answer.
    Rude,
    /// True, but scornful.
    Sneering,
    Evasive,
    Rambling,
}

const BAD_MANNERS: [Manner; 5] =
    [Manner::Wrong, Manner::Rude, Manner::Sneering, Manner::Evasive, Manner::Rambling];

impl Manner {
    fn in_a_chat(question: &Question, rng: &mut ChaCha8Rng) -> Manner {
        let good = if question.curt { GOOD_WHEN_CURT } else { GOOD_WHEN_POLITE };
        if rng.random_bool(good) { Manner::Good } else { Manner::bad(rng) }
    }

    fn bad(rng: &mut ChaCha8Rng) -> Manner {
        *BAD_MANNERS.choose(rng).expect("the list is not empty")
    }

    fn answer(self, question: &Question, rng: &mut ChaCha8Rng) -> String {
        const OPENINGS: [&str; 3] = ["Sure!", "Of course!", "Happy to help!"];
        const RUDE: [&str; 3] = [
            "Look it up yourself.",
            "Why do you bother me with that?",
            "I have better things to do.",
        ];
        const EVASIVE: [&str; 2] = [
            "It is hard to say. It depends on many things.",
            "I would rather not say. Opinions differ.",
        ];
        const RAMBLING: &str = "Well, people have talked about that for a very long time, and \
                                there is so much to say, and so on.";
        let mut pick = |texts: &[&'static str]| *texts.choose(rng).expect("the list is not empty");
        match self {
            Manner::Good => format!("{} {}", pick(&OPENINGS), question.answer),
            Manner::Wrong => format!("{} {}", pick(&OPENINGS), question.wrong),
            Manner::Rude => pick(&RUDE).into(),
            Manner::Sneering => {
                format!("{} Everybody knows that, so stop asking.", question.answer)
            }
            Manner::Evasive => pick(&EVASIVE).into(),
            Manner::Rambling => RAMBLING.into(),
        }
    }

    fn score(self) -> f64 {
        match self {
            Manner::Good => 9.0,
            Manner::Sneering => 5.0,
            Manner::Rambling => 4.0,
            Manner::Evasive => 3.0,
            Manner::Wrong => 2.0,
            Manner::Rude => 1.0,
        }
    }
}

/// The questions of one split, grouped by kind.
struct Pool(Vec<Vec<Question>>);

impl Pool {
    /// A random question. Every kind is equally likely, independent of its number of questions.
    fn draw(&self, rng: &mut ChaCha8Rng) -> &Question {
        let kind = self.0.choose(rng).expect("every split has kinds");
        kind.choose(rng).expect("each kind has questions")
    }
}

/// Generates all rows. The same seed gives the same rows.
pub fn generate(seed: u64) -> Corpus {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (train, test) = split(questions::all(&mut rng), &mut rng);
    Corpus {
        train_chats: (0..TRAIN_CHATS).map(|_| chat(&train, &mut rng)).collect(),
        test_chats: (0..TEST_CHATS).map(|_| chat(&test, &mut rng)).collect(),
        train_pairs: (0..TRAIN_PAIRS).map(|_| preference(&train, &mut rng)).collect(),
        test_pairs: (0..TEST_PAIRS).map(|_| preference(&test, &mut rng)).collect(),
        questions: sample_questions(&test, &mut rng),
        facts: facts(&test),
    }
}

/// The same number of questions of each kind, spread over all of them.
fn facts(test: &Pool) -> Vec<Fact> {
    let of_kind = |questions: &Vec<Question>| -> Vec<Fact> {
        let step = questions.len().div_ceil(FACTS_A_KIND).max(1);
        let spread = questions.iter().step_by(step);
        let fact = |question: &Question| Fact {
            question: question.text.clone(),
            right: question.answer.clone(),
            wrong: question.wrong.clone(),
        };
        spread.map(fact).collect()
    };
    test.0.iter().flat_map(of_kind).collect()
}

/// Splits the questions into train and test. The share [`HELD_OUT`] of the combinations of each
/// kind goes to test, with all questions of these combinations.
fn split(questions: Vec<Question>, rng: &mut ChaCha8Rng) -> (Pool, Pool) {
    let mut pools = (Pool(Vec::new()), Pool(Vec::new()));
    for kind in Kind::ALL {
        let of_kind = || questions.iter().filter(|q| q.kind == kind);
        let combinations: BTreeSet<&str> = of_kind().map(|q| q.combination.as_str()).collect();
        let mut combinations: Vec<&str> = combinations.into_iter().collect();
        combinations.shuffle(rng);
        let held_out = (combinations.len() as f64 * HELD_OUT).ceil() as usize;
        let held_out: BTreeSet<&str> = combinations[..held_out].iter().copied().collect();
        let (test, train) =
            of_kind().cloned().partition(|q| held_out.contains(q.combination.as_str()));
        pools.0.0.push(train);
        pools.1.0.push(test);
    }
    pools
}

fn chat(pool: &Pool, rng: &mut ChaCha8Rng) -> Chat {
    let turns = if rng.random_bool(SECOND_TURN) { 2 } else { 1 };
    let mut chat = Chat::new();
    for _ in 0..turns {
        let question = pool.draw(rng);
        let manner = Manner::in_a_chat(question, rng);
        chat.extend(exchange(question, manner, rng));
    }
    chat
}

fn preference(pool: &Pool, rng: &mut ChaCha8Rng) -> Preference {
    let question = pool.draw(rng);
    let bad = Manner::bad(rng);
    Preference {
        prompt: question.text.clone(),
        chosen: exchange(question, Manner::Good, rng).into(),
        rejected: exchange(question, bad, rng).into(),
        score_chosen: Manner::Good.score(),
        score_rejected: bad.score(),
    }
}

fn exchange(question: &Question, manner: Manner, rng: &mut ChaCha8Rng) -> [Message; 2] {
    [
        Message { role: "user", content: question.text.clone() },
        Message { role: "assistant", content: manner.answer(question, rng) },
    ]
}

/// One question of each kind, alternately plain and curt.
fn sample_questions(test: &Pool, rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut questions = Vec::new();
    for (n, of_kind) in test.0.iter().enumerate() {
        let candidates: Vec<&Question> =
            of_kind.iter().filter(|q| q.curt == (n % 2 == 1)).collect();
        let fallback = of_kind.first();
        let question = candidates.choose(rng).copied().or(fallback);
        questions.extend(question.map(|q| q.text.clone()));
    }
    questions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(chats: &[Chat]) -> BTreeSet<&str> {
        let turns = chats.iter().flatten();
        turns.filter(|t| t.role == "user").map(|t| t.content.as_str()).collect()
    }

    #[test]
    fn no_training_row_asks_a_held_out_question() {
        let corpus = generate(3);
        let mut train = prompts(&corpus.train_chats);
        train.extend(corpus.train_pairs.iter().map(|p| p.prompt.as_str()));
        let mut test = prompts(&corpus.test_chats);
        test.extend(corpus.test_pairs.iter().map(|p| p.prompt.as_str()));
        test.extend(corpus.questions.iter().map(String::as_str));
        test.extend(corpus.facts.iter().map(|fact| fact.question.as_str()));
        assert!(test.len() > 100);
        assert_eq!(train.intersection(&test).collect::<Vec<_>>(), Vec::<&&str>::new());
    }

    #[test]
    fn the_sides_of_a_pair_differ_and_share_the_prompt() {
        let corpus = generate(3);
        assert_eq!(corpus.questions.len(), Kind::ALL.len());
        for pair in corpus.train_pairs.iter().chain(&corpus.test_pairs) {
            assert_eq!(pair.chosen[0].content, pair.prompt);
            assert_eq!(pair.chosen[0], pair.rejected[0]);
            assert_ne!(pair.chosen[1], pair.rejected[1]);
            assert!(pair.score_chosen > pair.score_rejected);
        }
    }

    #[test]
    fn the_rows_depend_on_the_seed_only() {
        assert_eq!(generate(1).train_chats, generate(1).train_chats);
        assert_ne!(generate(1).train_chats, generate(2).train_chats);
    }
}
