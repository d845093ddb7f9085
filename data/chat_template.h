// Conversations as the text a chat model was trained on.
//
// Models ship their format as a Jinja template. Here the templates of the known families are
// rendered by hand, to the same bytes; a template is recognised by what it prints, and one that is
// not known is an error rather than a guess.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hone::data {

struct ChatMessage {
  std::string role;  // system user assistant; tool where the family has it
  std::string content;
  std::string reasoning;  // of an assistant; may also stand in `content` as <think>…</think>
};

struct ChatOptions {
  bool add_generation_prompt = false;
  // What happens to an assistant's thinking. The families drop it from earlier turns, or from all.
  enum class Thinking : uint8_t { kAsTemplate, kKeep, kDrop } thinking = Thinking::kAsTemplate;
  // The generation prompt opens the thinking block (true) or closes it empty (false), where the
  // family knows the choice.
  bool think = true;
  std::string date = "26 Jul 2024";  // Llama 3.1 prints one
};

class ChatTemplate {
 public:
  // One of Names(); ConfigError on another.
  static ChatTemplate Named(const std::string& name, const std::string& bos = "");
  // By the text of the Jinja template; ConfigError, beginning with `where`, when it is not known.
  static ChatTemplate Recognise(const std::string& jinja, const std::string& bos,
                                const std::string& where);
  // tokenizer_config.json or chat_template.jinja of a Hugging Face folder.
  static ChatTemplate FromFolder(const std::string& folder);
  // A name, or a folder.
  static ChatTemplate Load(const std::string& name_or_folder);
  static const std::vector<std::string>& Names();

  const std::string& name() const;
  // ConfigError on a role that the family does not have, and on no messages.
  std::string Text(const std::vector<ChatMessage>& messages, const ChatOptions& options) const;

 private:
  enum class Family : uint8_t { kChatMl, kQwen3, kLlama3, kLlama31, kDeepSeek };
  struct Style {
    std::string name;
    Family family = Family::kChatMl;
    std::string default_system;      // ChatML: printed when the first message is no system message
    bool generation_always = false;  // ChatML: each user turn opens the assistant's
    bool tools = false;              // ChatML: role tool is printed as a user's <tool_response>
    bool keep_all_thinking = false;  // Qwen3: of earlier turns too
    bool closes_thinking = false;    // Qwen3: not thinking is spelled as an empty block
    bool drop_thinking = false;      // DeepSeek: of every turn
    bool open_thinking = false;      // DeepSeek: the generation prompt ends in <think>
    bool join_system = true;  // DeepSeek: system messages are joined, else the last one counts
  };
  static const std::vector<Style>& Styles();

  ChatTemplate(Style style, std::string bos) : style_(std::move(style)), bos_(std::move(bos)) {}
  class Writer;

  Style style_;
  std::string bos_;
};

}  // namespace hone::data
