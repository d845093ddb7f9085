#include "runtime/file_system.h"

#include <gmock/gmock.h>

#include "runtime/metrics.h"
#include "tests/runtime/runtime_test_util.h"

namespace hone::runtime {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(FileSystemTest, WritesReadsAndTruncates) {
  TemporaryFolder folder;
  FileSystem& fs = LocalFileSystem();
  auto file = fs.Open(folder / "a", OpenMode::kCreate);
  file->Write(0, "hello", 5);
  file->Write(3, "p!", 2);
  file->Sync();
  EXPECT_EQ(file->Size(), 5);
  file->Close();
  EXPECT_EQ(fs.ReadAll(folder / "a"), "help!");
  auto again = fs.Open(folder / "a", OpenMode::kReadWrite);
  again->Truncate(2);
  char bytes[3];
  EXPECT_THAT(MessageOf<IoError>([&] { again->Read(0, bytes, 3); }),
              AllOf(HasSubstr(folder / "a"), HasSubstr("ends at byte 2")));
  EXPECT_EQ(fs.Open(folder / "a", OpenMode::kAppend)->Size(), 2);
  EXPECT_EQ(fs.Open(folder / "a", OpenMode::kCreate)->Size(), 0);
}

TEST(FileSystemTest, ErrorsNamePathAndReason) {
  TemporaryFolder folder;
  FileSystem& fs = LocalFileSystem();
  std::string none = folder / "none";
  auto names_it = AllOf(HasSubstr(none), HasSubstr("No such file or directory"));
  EXPECT_THAT(MessageOf<IoError>([&] { fs.Open(none, OpenMode::kRead); }), names_it);
  EXPECT_THAT(MessageOf<IoError>([&] { fs.Open(none, OpenMode::kReadWrite); }), names_it);
  EXPECT_THAT(MessageOf<IoError>([&] { fs.List(none); }), names_it);
  EXPECT_THAT(MessageOf<IoError>([&] { fs.Rename(none, folder / "x"); }), names_it);
  EXPECT_THAT(MessageOf<IoError>([&] { fs.Remove(none); }), names_it);
  EXPECT_THAT(MessageOf<IoError>([&] { fs.SyncDir(none); }), names_it);
  fs.WriteAtomically(folder / "file", "x");
  EXPECT_THAT(MessageOf<IoError>([&] { fs.MakeDirs(folder / "file/sub"); }),
              HasSubstr(folder / "file/sub"));
  EXPECT_THAT(MessageOf<IoError>([&] {
                auto file = fs.Open("/dev/full", OpenMode::kReadWrite);
                file->Write(0, "x", 1);
              }),
              AllOf(HasSubstr("/dev/full"), HasSubstr("No space left on device")));
}

TEST(FileSystemTest, FoldersExchangeAndRemove) {
  TemporaryFolder folder;
  FileSystem& fs = LocalFileSystem();
  fs.MakeDirs(folder / "a/b/c");
  fs.MakeDirs(folder / "z");
  fs.WriteAtomically(folder / "a/file", "in a");
  fs.Exchange(folder / "a", folder / "z");
  EXPECT_EQ(fs.ReadAll(folder / "z/file"), "in a");
  EXPECT_THAT(fs.List(folder / "a"), ElementsAre());
  EXPECT_THAT(fs.List(folder / "z"), ElementsAre("b", "file"));
  fs.RemoveAll(folder / "z");
  fs.RemoveAll(folder / "not there");
  EXPECT_THAT(fs.List(folder.path()), ElementsAre("a"));
}

TEST(FileSystemTest, WriteAtomicallyKeepsTheOldBytesUntilTheNewAreSafe) {
  for (std::string failing : {"open", "write", "sync", "close", "rename"}) {
    TemporaryFolder folder;
    FaultyFileSystem faulty(LocalFileSystem(),
                            [&](const std::string& op, const std::string&, int64_t) {
                              return op == failing ? "broken" : "";
                            });
    LocalFileSystem().WriteAtomically(folder / "state", "old");
    EXPECT_THAT(MessageOf<IoError>([&] { faulty.WriteAtomically(folder / "state", "newer"); }),
                AllOf(HasSubstr(failing), HasSubstr("state"), HasSubstr("broken")));
    EXPECT_EQ(LocalFileSystem().ReadAll(folder / "state"), "old");
    LocalFileSystem().WriteAtomically(folder / "state", "newer");
    EXPECT_EQ(LocalFileSystem().ReadAll(folder / "state"), "newer");
  }
}

TEST(FileSystemTest, AFailingWriteLeavesItsFirstHalf) {
  TemporaryFolder folder;
  FaultyFileSystem faulty(LocalFileSystem(),
                          [](const std::string& op, const std::string&, int64_t bytes) {
                            return op == "write" && bytes > 10 ? "full" : "";
                          });
  auto file = faulty.Open(folder / "a", OpenMode::kCreate);
  file->Write(0, "12345678", 8);
  EXPECT_THROW(file->Write(8, "abcd", 4), IoError);
  EXPECT_EQ(LocalFileSystem().ReadAll(folder / "a"), "12345678ab");
}

TEST(MetricsWriterTest, LinesAreTakenOutAndWritingGoesOn) {
  TemporaryFolder folder;
  std::string path = folder / "metrics.jsonl";
  auto all = [&] { return LocalFileSystem().ReadAll(path); };
  MetricsWriter writer(LocalFileSystem(), path);
  writer.Keep([](std::string_view) { return false; });
  for (const char* line : {"1", "22", "1", "333"}) writer.Write(line);
  EXPECT_EQ(all(), "1\n22\n1\n333\n") << "no buffering";
  writer.Keep([](std::string_view line) { return line != "22\n"; });
  EXPECT_EQ(all(), "1\n1\n333\n");
  writer.Write("4");
  EXPECT_EQ(all(), "1\n1\n333\n4\n");
  writer.Keep([](std::string_view line) { return line.size() > 5; });
  EXPECT_EQ(all(), "");
}

TEST(MetricsWriterTest, ATornLastLineIsCutOff) {
  TemporaryFolder folder;
  std::string path = folder / "metrics.jsonl",
              line = "{\"x\":\"" + std::string(10000, 'y') + "\"}\n";
  LocalFileSystem().WriteAtomically(path, line + std::string(9000, 'z'));
  MetricsWriter(LocalFileSystem(), path);
  EXPECT_EQ(LocalFileSystem().ReadAll(path), line);
  LocalFileSystem().WriteAtomically(path, std::string(9000, 'z'));
  MetricsWriter(LocalFileSystem(), path);
  EXPECT_EQ(LocalFileSystem().ReadAll(path), "");
}

}  // namespace
}  // namespace hone::runtime
