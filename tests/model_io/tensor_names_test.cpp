#include "model_io/config/tensor_names.h"

#include <gtest/gtest.h>

#include <map>

#include "model_fixture.h"

namespace ptrt {
namespace {

using Shapes = std::map<std::string, std::vector<std::int64_t>>;

Shapes shapes_of(const std::vector<TensorSpec>& tensors) {
  Shapes shapes;
  for (const TensorSpec& spec : tensors) shapes[spec.path] = spec.shape;
  return shapes;
}

TEST(TensorNames, Shared) {
  EXPECT_EQ(shapes_of(shared_tensors(small_config())), (Shapes{{"/shared/embedding", {259, 24}},
                                                               {"/shared/lm_head", {259, 24}},
                                                               {"/shared/final_norm", {24}}}));
  EXPECT_EQ(shapes_of(shared_tensors(small_config({{"tie_embeddings", true}}))),
            (Shapes{{"/shared/embedding", {259, 24}}, {"/shared/final_norm", {24}}}));
}

TEST(TensorNames, DenseLayerWithEveryNorm) {
  const std::string at = "/tracks/01/layers/002/";
  EXPECT_EQ(shapes_of(layer_tensors(small_config(), 1, 2)), (Shapes{{at + "attn_norm", {24}},
                                                                    {at + "attn_output_norm", {24}},
                                                                    {at + "attn_post_norm", {24}},
                                                                    {at + "ffn_norm", {24}},
                                                                    {at + "ffn_output_norm", {24}},
                                                                    {at + "ffn_post_norm", {24}},
                                                                    {at + "wq", {24, 24}},
                                                                    {at + "wk", {12, 24}},
                                                                    {at + "wv", {12, 24}},
                                                                    {at + "wo", {24, 24}},
                                                                    {at + "q_norm", {6}},
                                                                    {at + "k_norm", {6}},
                                                                    {at + "w_gate", {20, 24}},
                                                                    {at + "w_up", {20, 24}},
                                                                    {at + "w_down", {24, 20}}}));
}

TEST(TensorNames, MixtureLayerWithFewNorms) {
  const std::string at = "/tracks/00/layers/001/";
  const ModelConfig config = small_config({{"norm_placement", {"output"}}, {"qk_norm", false}});
  EXPECT_EQ(shapes_of(layer_tensors(config, 0, 1)), (Shapes{{at + "attn_output_norm", {24}},
                                                            {at + "ffn_output_norm", {24}},
                                                            {at + "wq", {24, 24}},
                                                            {at + "wk", {12, 24}},
                                                            {at + "wv", {12, 24}},
                                                            {at + "wo", {24, 24}},
                                                            {at + "router", {3, 24}},
                                                            {at + "experts/w_gate", {3, 10, 24}},
                                                            {at + "experts/w_up", {3, 10, 24}},
                                                            {at + "experts/w_down", {3, 24, 10}}}));
}

TEST(TensorNames, Biases) {
  const std::string at = "/tracks/01/layers/002/";
  Shapes all = shapes_of(layer_tensors(small_config(), 1, 2));
  all.insert({{at + "bq", {24}}, {at + "bk", {12}}, {at + "bv", {12}}, {at + "bo", {24}}});
  EXPECT_EQ(shapes_of(layer_tensors(small_config({{"attention_bias", {"o", "v", "k", "q"}}}), 1, 2)), all);
  all.erase(at + "bq");
  all.erase(at + "bo");
  EXPECT_EQ(shapes_of(layer_tensors(small_config({{"attention_bias", {"k", "v"}}}), 1, 2)), all);
}

TEST(TensorNames, Blocks) {
  EXPECT_EQ(shapes_of(block_tensors(small_config(), 1, 1)),
            (Shapes{{"/tracks/01/blocks/01/dispatch_norm", {24}}}));
  const Shapes all = shapes_of(track_tensors(small_config(), 1));
  EXPECT_EQ(all.size(), 2u + 15u + 16u + 15u);
  EXPECT_EQ(all.count("/tracks/01/blocks/00/dispatch_norm"), 1u);
}

}  // namespace
}  // namespace ptrt
