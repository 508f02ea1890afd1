// wordcount [FILE...]: prints the ten words that are most frequent in the files, or in standard input.
#include <algorithm>
#include <cctype>
#include <fstream>
#include <iostream>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

constexpr std::size_t kShown = 10;

using Counts = std::unordered_map<std::string, unsigned long>;

void count(std::istream &in, Counts &counts) {
    std::string word;
    for (char c; in.get(c);) {
        const auto byte = static_cast<unsigned char>(c);
        if (std::isalnum(byte) || byte >= 0x80) {  // a byte of a letter beyond ASCII
            word += static_cast<char>(std::tolower(byte));
        } else if (!word.empty()) {
            ++counts[word];
            word.clear();
        }
    }
    if (!word.empty()) {
        ++counts[word];
    }
}

}  // namespace

int main(int argc, char **argv) {
    Counts counts;
    for (int i = 1; i < argc; ++i) {
        std::ifstream in(argv[i]);
        if (!in) {
            std::cerr << "wordcount: cannot open " << argv[i] << '\n';
            return 1;
        }
        count(in, counts);
    }
    if (argc == 1) {
        count(std::cin, counts);
    }

    std::vector<std::pair<std::string, unsigned long>> words(counts.begin(), counts.end());
    std::sort(words.begin(), words.end(), [](const auto &a, const auto &b) {
        return a.second != b.second ? a.second > b.second : a.first < b.first;
    });
    words.resize(std::min(words.size(), kShown));
    for (const auto &[word, times] : words) {
        std::cout << times << ' ' << word << '\n';
    }
    return std::cout.flush() ? 0 : 1;
}
