//! Every question of the demo, each with its right answer.
//!
//! A few facts and a few phrasings are combined. The test split holds out
//! combinations, never facts: a fact in one phrasing, two animals, or two numbers that no training
//! row has. So a model that learned the facts can answer the test questions.
//!
//! The texts decide the weights of the demo: a changed word changes all its numbers.

use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// The topic of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Color,
    Opposite,
    Animal,
    Comparison,
    Order,
    Calendar,
    Category,
    HowTo,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Color,
        Kind::Opposite,
        Kind::Animal,
        Kind::Comparison,
        Kind::Order,
        Kind::Calendar,
        Kind::Category,
        Kind::HowTo,
    ];
}

/// One question in one phrasing.
#[derive(Debug, Clone)]
pub struct Question {
    pub kind: Kind,
    /// The unit of the train/test split: all questions with the same combination are in one split.
    pub combination: String,
    pub text: String,
    /// The right answer, as a sentence.
    pub answer: String,
    /// A false sentence of the same form.
    pub wrong: String,
    /// Whether the phrasing is curt. Curt questions mostly get bad answers in the chats.
    pub curt: bool,
}

/// Phrasings of a question; `{}` stands for its subject. The first three are polite or plain, the
/// last two are curt.
type Phrasings = [&'static str; 5];

const COLORS: &[(&str, &str)] = &[
    ("a banana", "yellow"),
    ("a lemon", "yellow"),
    ("the sun", "yellow"),
    ("a chick", "yellow"),
    ("a tomato", "red"),
    ("a cherry", "red"),
    ("a strawberry", "red"),
    ("a fire engine", "red"),
    ("the sky", "blue"),
    ("the sea", "blue"),
    ("a blueberry", "blue"),
    ("grass", "green"),
    ("a frog", "green"),
    ("a leaf", "green"),
    ("a cucumber", "green"),
    ("a lime", "green"),
    ("snow", "white"),
    ("milk", "white"),
    ("a swan", "white"),
    ("salt", "white"),
    ("coal", "black"),
    ("a raven", "black"),
    ("the night", "black"),
    ("a pumpkin", "orange"),
    ("a carrot", "orange"),
    ("a tangerine", "orange"),
    ("chocolate", "brown"),
    ("a chestnut", "brown"),
    ("a plum", "purple"),
    ("an aubergine", "purple"),
];

const OPPOSITES: &[(&str, &str)] = &[
    ("hot", "cold"),
    ("big", "small"),
    ("fast", "slow"),
    ("old", "young"),
    ("open", "closed"),
    ("full", "empty"),
    ("light", "dark"),
    ("early", "late"),
    ("high", "low"),
    ("wet", "dry"),
    ("loud", "quiet"),
    ("rich", "poor"),
    ("strong", "weak"),
    ("happy", "sad"),
    ("hard", "soft"),
    ("near", "far"),
];

/// Animal, its home, its young, its sound.
const ANIMALS: &[(&str, &str, &str, &str)] = &[
    ("cow", "barn", "calf", "moo"),
    ("dog", "kennel", "puppy", "woof"),
    ("horse", "stable", "foal", "neigh"),
    ("sheep", "fold", "lamb", "baa"),
    ("pig", "sty", "piglet", "oink"),
    ("cat", "house", "kitten", "meow"),
    ("duck", "pond", "duckling", "quack"),
    ("lion", "den", "cub", "roar"),
    ("owl", "tree", "owlet", "hoot"),
    ("frog", "marsh", "tadpole", "croak"),
];

/// Animals from the smallest to the largest.
const SIZES: &[&str] = &[
    "an ant",
    "a bee",
    "a mouse",
    "a frog",
    "a cat",
    "a dog",
    "a sheep",
    "a horse",
    "an elephant",
    "a whale",
];

const DAYS: &[&str] =
    &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

const CATEGORIES: &[(&str, &[&str])] = &[
    ("a fruit", &["an apple", "a pear", "a cherry", "a plum", "a peach", "a banana"]),
    ("a vegetable", &["a carrot", "an onion", "a leek", "a potato", "a cabbage", "a turnip"]),
    ("a tool", &["a hammer", "a saw", "a spade", "a rake", "a wrench", "a drill"]),
    ("an animal", &["a cow", "a dog", "a horse", "a sheep", "a lion", "an owl"]),
];

const HOW_TO: &[(&str, &str)] = &[
    ("make tea", "Boil some water, add the tea leaves and wait three minutes."),
    ("make toast", "Cut some bread and put it in the toaster until it is golden."),
    ("cook rice", "Wash the rice, add two cups of water and cook it for ten minutes."),
    ("boil an egg", "Put the egg in hot water and take it out after six minutes."),
    ("make a salad", "Wash the leaves, cut a tomato and add some oil and salt."),
    ("plant a seed", "Make a hole in the ground, put the seed in it and water it."),
    ("clean a window", "Wipe the glass with warm water and dry it with a soft cloth."),
    ("wash a shirt", "Put the shirt in warm water with soap and hang it up to dry."),
    ("paint a wall", "Cover the floor, stir the paint and roll it on from the top."),
    ("light a fire", "Stack some dry wood, put paper under it and hold a match to it."),
];

const HOW_TO_PHRASINGS: Phrasings = [
    "How do I {}?",
    "Could you please tell me how to {}?",
    "What is the best way to {}?",
    "Tell me how to {}.",
    "I need to {} now. How?",
];

/// Every question, in a fixed order. `rng` chooses the wrong answers only.
pub fn all(rng: &mut ChaCha8Rng) -> Vec<Question> {
    let mut questions = Vec::new();
    colors(&mut questions, rng);
    opposites(&mut questions, rng);
    animals(&mut questions, rng);
    comparisons(&mut questions);
    orders(&mut questions);
    calendar(&mut questions, rng);
    categories(&mut questions, rng);
    how_to(&mut questions, rng);
    questions
}

fn colors(questions: &mut Vec<Question>, rng: &mut ChaCha8Rng) {
    let phrasings: Phrasings = [
        "What colour is {}?",
        "Could you please tell me the colour of {}?",
        "Which colour does {} have?",
        "Tell me the colour of {}.",
        "The colour of {}. Quick.",
    ];
    for &(thing, color) in COLORS {
        let answer = capitalized(&format!("{thing} is {color}."));
        for (i, phrasing) in phrasings.iter().enumerate() {
            let other = different(COLORS, color, |c| c.1, rng);
            questions.push(Question {
                kind: Kind::Color,
                combination: format!("colour of {thing}, {i}"),
                text: phrasing.replace("{}", thing),
                answer: answer.clone(),
                wrong: capitalized(&format!("{thing} is {other}.")),
                curt: i >= 3,
            });
        }
    }
}

fn opposites(questions: &mut Vec<Question>, rng: &mut ChaCha8Rng) {
    let phrasings: Phrasings = [
        "What is the opposite of {}?",
        "Could you please tell me the opposite of {}?",
        "Which word is the opposite of {}?",
        "Tell me the opposite of {}.",
        "The opposite of {}. Quick.",
    ];
    let both_ways = OPPOSITES.iter().flat_map(|&(a, b)| [(a, b), (b, a)]);
    for (word, opposite) in both_ways {
        for (i, phrasing) in phrasings.iter().enumerate() {
            let other = loop {
                let pair = OPPOSITES.choose(rng).expect("the table has rows");
                if pair.0 != word && pair.1 != word {
                    break pair.0;
                }
            };
            questions.push(Question {
                kind: Kind::Opposite,
                combination: format!("opposite of {word}, {i}"),
                text: phrasing.replace("{}", word),
                answer: format!("That is {opposite}."),
                wrong: format!("That is {other}."),
                curt: i >= 3,
            });
        }
    }
}

fn animals(questions: &mut Vec<Question>, rng: &mut ChaCha8Rng) {
    type Row = (&'static str, &'static str, &'static str, &'static str);
    type Fact = fn(&Row) -> &'static str;
    let home: Phrasings = [
        "Where does {} live?",
        "Could you please tell me where {} lives?",
        "What is the home of {}?",
        "Tell me where {} lives.",
        "The home of {}. Quick.",
    ];
    let young: Phrasings = [
        "What is the young of {} called?",
        "Could you please tell me what the young of {} is called?",
        "Which name has the young of {}?",
        "Tell me the name of the young of {}.",
        "The young of {}. Quick.",
    ];
    let sound: Phrasings = [
        "What sound does {} make?",
        "Could you please tell me what {} says?",
        "Which sound comes from {}?",
        "Tell me the sound of {}.",
        "The sound of {}. Quick.",
    ];
    let aspects: [(&str, Phrasings, &str, Fact); 3] = [
        ("home", home, "{} lives in a [].", |row| row.1),
        ("young", young, "The young of {} is called a [].", |row| row.2),
        ("sound", sound, "{} says [].", |row| row.3),
    ];
    for row in ANIMALS {
        let animal = with_article(row.0);
        for (aspect, phrasings, sentence, of) in &aspects {
            let fill = |fact: &str| {
                capitalized(&sentence.replace("{}", &animal).replace("[]", fact))
                    .replace("a owlet", "an owlet")
            };
            for (i, phrasing) in phrasings.iter().enumerate() {
                questions.push(Question {
                    kind: Kind::Animal,
                    combination: format!("{aspect} of {animal}, {i}"),
                    text: phrasing.replace("{}", &animal),
                    answer: fill(of(row)),
                    wrong: fill(different(ANIMALS, of(row), of, rng)),
                    curt: i >= 3,
                });
            }
        }
    }
}

fn comparisons(questions: &mut Vec<Question>) {
    let phrasings: Phrasings = [
        "Which is bigger, [] or <>?",
        "Could you please tell me which is bigger, [] or <>?",
        "Is [] bigger or is <>?",
        "Tell me which is bigger, [] or <>.",
        "What is bigger, [] or <>? Quick.",
    ];
    for (i, small) in SIZES.iter().enumerate() {
        for large in &SIZES[i + 1..] {
            for (first, second) in [(small, large), (large, small)] {
                for (p, phrasing) in phrasings.iter().enumerate() {
                    questions.push(Question {
                        kind: Kind::Comparison,
                        combination: format!("{first} or {second}"),
                        text: phrasing.replace("[]", first).replace("<>", second),
                        answer: capitalized(&format!("{large} is bigger.")),
                        wrong: capitalized(&format!("{small} is bigger.")),
                        curt: p >= 3,
                    });
                }
            }
        }
    }
}

fn orders(questions: &mut Vec<Question>) {
    let upwards: Phrasings = [
        "Put {} in order.",
        "Could you please put {} in order?",
        "How do you put {} in order?",
        "Sort {}.",
        "Order of {}. Quick.",
    ];
    let downwards: Phrasings = [
        "Put {} in order, largest first.",
        "Could you please put {} in order, largest first?",
        "How do you put {} in order, largest first?",
        "Sort {}, largest first.",
        "Order of {}, largest first. Quick.",
    ];
    for (small, large) in (1..=9).flat_map(|a| (a + 1..=9).map(move |b| (a, b))) {
        let upward = format!("That is {small} and {large}.");
        let downward = format!("That is {large} and {small}.");
        for asked in [format!("{small} and {large}"), format!("{large} and {small}")] {
            let ways = [(&upwards, &upward, &downward), (&downwards, &downward, &upward)];
            for (phrasings, right, wrong) in ways {
                for (i, phrasing) in phrasings.iter().enumerate() {
                    questions.push(Question {
                        kind: Kind::Order,
                        combination: asked.clone(),
                        text: phrasing.replace("{}", &asked),
                        answer: right.clone(),
                        wrong: wrong.clone(),
                        curt: i >= 3,
                    });
                }
            }
        }
    }
}

fn calendar(questions: &mut Vec<Question>, rng: &mut ChaCha8Rng) {
    let phrasings: Phrasings = [
        "Which day comes {}?",
        "Could you please tell me which day comes {}?",
        "What day is {}?",
        "Tell me the day {}.",
        "The day {}. Quick.",
    ];
    for (n, day) in DAYS.iter().enumerate() {
        for (relation, step) in [("after", 1), ("before", DAYS.len() - 1)] {
            let right = DAYS[(n + step) % DAYS.len()];
            let place = format!("{relation} {day}");
            for (i, phrasing) in phrasings.iter().enumerate() {
                let other = loop {
                    let other = *DAYS.choose(rng).expect("the table has rows");
                    if other != right && other != *day {
                        break other;
                    }
                };
                questions.push(Question {
                    kind: Kind::Calendar,
                    combination: format!("{place}, {i}"),
                    text: phrasing.replace("{}", &place),
                    answer: format!("That is {right}."),
                    wrong: format!("That is {other}."),
                    curt: i >= 3,
                });
            }
        }
    }
}

fn categories(questions: &mut Vec<Question>, rng: &mut ChaCha8Rng) {
    let phrasings: Phrasings = [
        "Is {} []?",
        "Could you please tell me if {} is []?",
        "Would you call {} []?",
        "Tell me if {} is [].",
        "So {} is [], yes or no?",
    ];
    for (own, members) in CATEGORIES {
        for thing in *members {
            let other = different(CATEGORIES, own, |row| row.0, rng);
            // The answer names the category first, so that yes or no follows from the text before
            // it.
            let yes = capitalized(&format!("{thing} is {own}, so yes."));
            let no = capitalized(&format!("{thing} is {own}, so no."));
            let not_own = capitalized(&format!("{thing} is {other}, so no."));
            let is_other = capitalized(&format!("{thing} is {other}, so yes."));
            for (asked, right, wrong) in [(*own, yes, not_own), (other, no, is_other)] {
                for (i, phrasing) in phrasings.iter().enumerate() {
                    questions.push(Question {
                        kind: Kind::Category,
                        combination: format!("{thing} is {asked}, {i}"),
                        text: phrasing.replace("{}", thing).replace("[]", asked),
                        answer: right.clone(),
                        wrong: wrong.clone(),
                        curt: i >= 3,
                    });
                }
            }
        }
    }
}

fn how_to(questions: &mut Vec<Question>, rng: &mut ChaCha8Rng) {
    for &(task, method) in HOW_TO {
        for (i, phrasing) in HOW_TO_PHRASINGS.iter().enumerate() {
            questions.push(Question {
                kind: Kind::HowTo,
                combination: format!("{task}, {i}"),
                text: phrasing.replace("{}", task),
                answer: method.into(),
                wrong: different(HOW_TO, method, |row| row.1, rng).into(),
                curt: i >= 3,
            });
        }
    }
}

/// A random value of the table that differs from `right`.
fn different<R>(
    table: &[R],
    right: &str,
    of: impl Fn(&R) -> &'static str,
    rng: &mut ChaCha8Rng,
) -> &'static str {
    loop {
        let value = of(table.choose(rng).expect("the table has rows"));
        if value != right {
            return value;
        }
    }
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

/// The sentence with a capital first letter, which is ASCII in all texts here.
fn capitalized(sentence: &str) -> String {
    let mut sentence = sentence.to_string();
    if let Some(first) = sentence.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    sentence
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_question_has_one_right_answer_and_a_different_wrong_one() {
        let questions = all(&mut ChaCha8Rng::seed_from_u64(0));
        let mut answers = HashMap::new();
        for question in &questions {
            assert_ne!(question.answer, question.wrong, "{}", question.text);
            let first = answers.entry(&question.text).or_insert(&question.answer);
            assert_eq!(*first, &question.answer, "{}", question.text);
            assert!(!question.text.contains(['{', '[', '<']), "{}", question.text);
            assert!(!question.answer.contains(['{', '[', '<']), "{}", question.answer);
        }
        for kind in Kind::ALL {
            let of_kind = questions.iter().filter(|q| q.kind == kind);
            assert!(of_kind.clone().any(|q| q.curt) && of_kind.clone().any(|q| !q.curt));
        }
    }
}
