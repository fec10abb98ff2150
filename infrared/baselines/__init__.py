"""What people would pick instead: U-Net and UPerNet of smp, SegFormer and DeepLabV3+ of mmseg."""
