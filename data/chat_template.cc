#include "data/chat_template.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/text.h"
#include "runtime/error.h"

namespace hone::data {
namespace {

// Python's str.lstrip("\n") and rstrip("\n").
std::string WithoutLeadingNewlines(const std::string& text) {
  size_t at = text.find_first_not_of('\n');
  return at == std::string::npos ? "" : text.substr(at);
}
std::string WithoutTrailingNewlines(const std::string& text) {
  return text.substr(0, text.find_last_not_of('\n') + 1);
}
std::string WithoutNewlines(const std::string& text) {
  return WithoutTrailingNewlines(WithoutLeadingNewlines(text));
}
// Python's text.split(mark)[-1] and [0].
std::string AfterLast(const std::string& text, std::string_view mark) {
  size_t at = text.rfind(mark);
  return at == std::string::npos ? text : text.substr(at + mark.size());
}
std::string BeforeFirst(const std::string& text, std::string_view mark) {
  return text.substr(0, text.find(mark));
}
bool Has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

constexpr std::string_view kEndThink = "</think>";

// What an assistant thought and what it said after that.
struct Split {
  std::string reasoning, content;
  bool thought = false;  // whether there was a thinking part at all
};
Split SplitThinking(const ChatMessage& message) {
  if (!message.reasoning.empty()) return {message.reasoning, message.content, true};
  if (!Has(message.content, kEndThink)) return {"", message.content, false};
  std::string before = WithoutTrailingNewlines(BeforeFirst(message.content, kEndThink));
  return {WithoutLeadingNewlines(AfterLast(before, "<think>")),
          WithoutLeadingNewlines(AfterLast(message.content, kEndThink)), true};
}
std::string Joined(const Split& split) {
  return "<think>\n" + WithoutNewlines(split.reasoning) + "\n</think>\n\n" +
         WithoutLeadingNewlines(split.content);
}

}  // namespace

class ChatTemplate::Writer {
 public:
  Writer(const ChatTemplate& chat, const std::vector<ChatMessage>& messages,
         const ChatOptions& options)
      : style_(chat.style_), bos_(chat.bos_), messages_(messages), options_(options) {}

  std::string Write() {
    switch (style_.family) {
      case Family::kChatMl:
      case Family::kQwen3:
        ChatMl();
        break;
      case Family::kLlama3:
      case Family::kLlama31:
        Llama();
        break;
      case Family::kDeepSeek:
        DeepSeek();
        break;
    }
    return std::move(text_);
  }

 private:
  void Put(const std::string& text) { text_ += text; }
  [[noreturn]] void BadRole(size_t i) const {
    throw ConfigError(fmt::format("[chat_template] {} has no role '{}' (message {})", style_.name,
                                  messages_[i].role, i));
  }

  // ---- ChatML: <|im_start|>role\ncontent<|im_end|>\n

  void ChatMl() {
    if (messages_[0].role != "system" && !style_.default_system.empty()) {
      Put("<|im_start|>system\n" + style_.default_system + "<|im_end|>\n");
    }
    size_t last_query = LastQuery();
    for (size_t i = 0; i < messages_.size(); ++i) {
      const ChatMessage& message = messages_[i];
      if (message.role == "assistant") {
        if (!style_.generation_always) Put("<|im_start|>assistant\n");
        Put(AssistantContent(i, last_query) + "<|im_end|>\n");
      } else if (message.role == "tool" && style_.tools) {
        ToolResponse(i);
      } else if (message.role == "user" || message.role == "system") {
        if (style_.generation_always && message.role == "system" && i > 0) continue;
        Put("<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n");
        if (style_.generation_always && message.role == "user") Put("<|im_start|>assistant\n");
      } else {
        BadRole(i);
      }
    }
    if (!options_.add_generation_prompt || style_.generation_always) return;
    Put("<|im_start|>assistant\n");
    if (style_.closes_thinking && !options_.think) Put("<think>\n\n</think>\n\n");
    if (style_.keep_all_thinking && options_.think) Put("<think>\n");
  }
  // The last user message that is no tool's answer: what comes after it is one turn.
  size_t LastQuery() const {
    for (size_t i = messages_.size(); i-- > 0;) {
      const std::string& content = messages_[i].content;
      bool response =
          content.starts_with("<tool_response>") && content.ends_with("</tool_response>");
      if (messages_[i].role == "user" && !response) return i;
    }
    return messages_.size() - 1;
  }
  std::string AssistantContent(size_t i, size_t last_query) const {
    using Thinking = ChatOptions::Thinking;
    const ChatMessage& message = messages_[i];
    Split split = SplitThinking(message);
    if (options_.thinking == Thinking::kDrop) return split.content;
    if (options_.thinking == Thinking::kKeep && split.thought) return Joined(split);
    if (style_.family != Family::kQwen3) return message.content;
    bool last = i + 1 == messages_.size();
    bool shown = style_.keep_all_thinking || (i > last_query && (last || !split.reasoning.empty()));
    return shown ? Joined(split) : split.content;
  }
  void ToolResponse(size_t i) {
    if (i == 0 || messages_[i - 1].role != "tool") Put("<|im_start|>user");
    Put("\n<tool_response>\n" + messages_[i].content + "\n</tool_response>");
    if (i + 1 == messages_.size() || messages_[i + 1].role != "tool") Put("<|im_end|>\n");
  }

  // ---- Llama 3: <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>

  static std::string Header(const std::string& role) {
    return "<|start_header_id|>" + role + "<|end_header_id|>\n\n";
  }
  void Llama() {
    Put(bos_);
    size_t first = 0;
    if (style_.family == Family::kLlama31) {
      bool system = messages_[0].role == "system";
      Put(Header("system") + "Cutting Knowledge Date: December 2023\nToday Date: " + options_.date +
          "\n\n" + (system ? std::string(Trim(messages_[0].content)) : "") + "<|eot_id|>");
      first = system ? 1 : 0;
    }
    for (size_t i = first; i < messages_.size(); ++i) {
      const ChatMessage& message = messages_[i];
      bool assistant = message.role == "assistant";
      if (!assistant && message.role != "user" && message.role != "system") BadRole(i);
      Put(Header(message.role));
      std::string content(Trim(assistant ? PlainContent(message) : message.content));
      Put(content + "<|eot_id|>");
    }
    if (options_.add_generation_prompt) Put(Header("assistant"));
  }
  // For families whose template knows nothing of thinking.
  std::string PlainContent(const ChatMessage& message) const {
    Split split = SplitThinking(message);
    if (options_.thinking == ChatOptions::Thinking::kDrop) return split.content;
    return message.reasoning.empty() ? message.content : Joined(split);
  }

  // ---- DeepSeek: <｜User｜>content<｜Assistant｜>content<｜end▁of▁sentence｜>

  void DeepSeek() {
    Put(bos_ + SystemPrompt());
    for (size_t i = 0; i < messages_.size(); ++i) {
      const ChatMessage& message = messages_[i];
      if (message.role == "user") {
        Put("<｜User｜>" + message.content);
      } else if (message.role == "assistant") {
        Put("<｜Assistant｜>" + DeepSeekContent(message) + "<｜end▁of▁sentence｜>");
      } else if (message.role != "system") {
        BadRole(i);
      }
    }
    if (!options_.add_generation_prompt) return;
    Put("<｜Assistant｜>");
    if (style_.open_thinking) Put(options_.think ? "<think>\n" : "<think>\n\n</think>\n\n");
  }
  std::string SystemPrompt() const {
    std::string prompt;
    bool first = true;
    for (const ChatMessage& message : messages_) {
      if (message.role != "system") continue;
      if (first || !style_.join_system) {
        prompt = message.content;
      } else {
        prompt += "\n\n" + message.content;
      }
      first = false;
    }
    return prompt;
  }
  std::string DeepSeekContent(const ChatMessage& message) const {
    bool drop = options_.thinking == ChatOptions::Thinking::kDrop ||
                (options_.thinking == ChatOptions::Thinking::kAsTemplate && style_.drop_thinking);
    if (drop) return AfterLast(message.content, kEndThink);
    return message.reasoning.empty() ? message.content : Joined(SplitThinking(message));
  }

  const Style& style_;
  const std::string& bos_;
  const std::vector<ChatMessage>& messages_;
  const ChatOptions& options_;
  std::string text_;
};

const std::vector<ChatTemplate::Style>& ChatTemplate::Styles() {
  static const std::vector<Style> kStyles = [] {
    std::vector<Style> styles(10);
    auto chatml = [](const char* name, const char* system, bool tools) {
      Style style;
      style.name = name;
      style.default_system = system;
      style.tools = tools;
      return style;
    };
    styles[0] = chatml("chatml", "", false);
    styles[1] = chatml("qwen2", "You are a helpful assistant.", false);
    styles[2] = chatml("qwen2_sft", "You are a helpful assistant.", false);
    styles[2].generation_always = true;
    styles[3] = chatml(
        "qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", true);
    styles[4] = chatml("qwen3", "", true);
    styles[4].family = Family::kQwen3;
    styles[4].closes_thinking = true;
    styles[5] = styles[4];
    styles[5].name = "minimind";
    styles[5].keep_all_thinking = true;
    styles[6].name = "llama3";
    styles[6].family = Family::kLlama3;
    styles[7].name = "llama3.1";
    styles[7].family = Family::kLlama31;
    styles[8].name = "deepseek_v3";
    styles[8].family = Family::kDeepSeek;
    styles[9] = styles[8];
    styles[9].name = "deepseek_r1";
    styles[9].drop_thinking = true;
    styles[9].open_thinking = true;
    return styles;
  }();
  return kStyles;
}

const std::vector<std::string>& ChatTemplate::Names() {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names;
    for (const Style& style : Styles()) names.push_back(style.name);
    return names;
  }();
  return kNames;
}

const std::string& ChatTemplate::name() const { return style_.name; }

ChatTemplate ChatTemplate::Named(const std::string& name, const std::string& bos) {
  for (const Style& style : Styles()) {
    if (style.name != name) continue;
    bool llama = style.family == Family::kLlama3 || style.family == Family::kLlama31;
    std::string usual = llama                               ? "<|begin_of_text|>"
                        : style.family == Family::kDeepSeek ? "<｜begin▁of▁sentence｜>"
                                                            : "";
    return ChatTemplate(style, bos.empty() ? usual : bos);
  }
  throw ConfigError(fmt::format("[chat_template] no template is named '{}'; there are: {}", name,
                                Join(Names(), ", ")));
}

ChatTemplate ChatTemplate::Recognise(const std::string& jinja, const std::string& bos,
                                     const std::string& where) {
  // In some files the newlines are spelled \\n, in some they are newlines.
  std::string text = ReplaceAll(jinja, "\\n", "\n");
  auto has = [&](std::string_view part) { return Has(text, part); };
  if (has("<|start_header_id|>") && !has("<|im_start|>")) {
    return Named(has("Cutting Knowledge Date: December 2023") ? "llama3.1" : "llama3", bos);
  }
  bool deepseek = has("'<｜User｜>' + message['content']") && !has("is_last_user");
  if (deepseek) {
    bool opens = has("'<｜Assistant｜><think>\n'");
    ChatTemplate found =
        Named(has("content.split('</think>')") ? "deepseek_r1" : "deepseek_v3", bos);
    found.style_.open_thinking = opens;
    found.style_.join_system = has("ns.system_prompt + '\n\n'") || has("is_first_sp");
    return found;
  }
  if (has("<|im_start|>") && has("<|im_end|>")) {
    if (has("last_query_index")) return Named(has("open_thinking") ? "minimind" : "qwen3", bos);
    if (has("<|im_end|>\n<|im_start|>assistant\n")) return Named("qwen2_sft", bos);
    for (const char* name : {"qwen2.5", "qwen2"}) {
      ChatTemplate found = Named(name, bos);
      if (has(found.style_.default_system)) return found;
    }
    bool plain =
        has("message['role'] + '\n' + message['content']") && !has("tools") && !has("system");
    if (plain) return Named("chatml", bos);
  }
  throw ConfigError(
      fmt::format("{}: this chat template is not known; name the one it is like (chat: {}), or "
                  "write the prompt's "
                  "form yourself with prompt_template",
                  where, Join(Names(), " | ")));
}

std::string ChatTemplate::Text(const std::vector<ChatMessage>& messages,
                               const ChatOptions& options) const {
  Check<ConfigError>(!messages.empty(), "[chat_template] a conversation without messages");
  return Writer(*this, messages, options).Write();
}

}  // namespace hone::data
