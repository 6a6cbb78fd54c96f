// How answers are scored: LongBench's metrics (Bai et al., arXiv 2308.14508, metrics.py), RULER's string match (Hsieh et al.,
// arXiv 2404.06654) and GSM8K's exact match of the last number. All are in [0, 1]. Letters are folded in ASCII only.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace fasa::cli {

// Lower case, without punctuation and the articles a, an, the; words separated by one blank (SQuAD's normalisation).
std::string normalize_answer(const std::string& text);

// F1 of the bags of normalised words.
double f1_score(const std::string& prediction, const std::string& truth);

// ROUGE-L F of the Python package rouge 1.0.1, which LongBench calls: sentences end at '.', words are split at blanks; the union
// of the longest common subsequences of sentence pairs, counted as distinct words.
double rouge_l_score(const std::string& prediction, const std::string& truth);

// 1 / number of class names found in the prediction, if the right one is among them, else 0; a name that is part of the right
// one does not count.
double classification_score(const std::string& prediction, const std::string& truth,
                            std::span<const std::string> classes);

// Share of the prediction's numbers that are the paragraph of the truth ("Paragraph 7").
double retrieval_score(const std::string& prediction, const std::string& truth);

// Share of the prediction's numbers that equal the truth.
double count_score(const std::string& prediction, const std::string& truth);

// Similarity 2 M / (|a| + |b|) of the truth and the prediction's first line that is neither comment nor fence, where M is the
// longest common subsequence of bytes; rounded to percent, as fuzzywuzzy's ratio with python-Levenshtein.
double code_similarity_score(const std::string& prediction, const std::string& truth);

// Share of `wanted` that occur in the prediction, in any case (RULER's string_match_all).
double match_all_score(const std::string& prediction, std::span<const std::string> wanted);

// The last number of a text, without thousands separators and trailing zeros of a fraction; empty if there is none.
std::string last_number(const std::string& text);
// 1 if the last numbers of both are equal, else 0; the truth's is what follows "####", if that is there (GSM8K).
double last_number_score(const std::string& prediction, const std::string& truth);

}  // namespace fasa::cli
