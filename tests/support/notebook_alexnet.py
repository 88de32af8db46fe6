"""The AlexNet class of a public notebook, as its author wrote it: what the `notebook` architecture must equal.

Source: masalha-alaa, https://github.com/masalha-alaa/alexnet-pytorch, AlexNet_pytorch.ipynb; the class and the functions it
uses, unchanged except for one word of a comment. It is kept for comparison in tests, faults included, and is not packaged.
"""

import torch
import torch.nn as nn


def calc_out_size(in_size, padding, kernel, stride):
    # formula from: https://youtu.be/wnK3uWv_WkU?t=234
    # further reading: https://blog.mlreview.com/a-guide-to-receptive-field-arithmetic-for-convolutional-neural-networks-e0f514068807
    # assuming symmetric nn
    padding = padding if isinstance(padding, int) else padding[0]
    kernel = kernel if isinstance(kernel, int) else kernel[0]
    stride = stride if isinstance(stride, int) else stride[0]
    return ((in_size + 2*padding - kernel) // stride) + 1


def same_padding(in_out_size, kernel_size, stride):
    """
    A pading metric called "Same", which doesn't exist in PyTorch. It exists in Keras though.
    I figured out the formula simply by extracting the "padding" variable from the formula used in calc_out_size():
    out = [(in + 2*padding - kernel) / stride] + 1
    where in == out
    padding = (out * stride - out + kernel - stride) // 2
    """
    return (in_out_size * stride - in_out_size + kernel_size - stride * 1) // 2


def weights_init(m, bias=1.0):
    # Gaussian Weight initalization before each layer: mean 0: std: 0.01.
    torch.nn.init.normal_(m.weight, 0.0, 0.01)
    if bias:
        m.bias.data.fill_(bias)


class AlexNet(nn.Module):
    def __init__(self, dimensions, in_channels, num_classes):
        super().__init__()
        self.dimensions = dimensions
        self.num_classes = num_classes
        self.current_size = 0
        
        # Note: In layers 2,3,4,5 I use "Same" padding. This is a padding metric that keeps the layer's output size the same as the
        # previous layer, by sitting the appropriate padding size.
        # I use this because in the paper they don't mention the padding they picked, but one can conclude it from the layers sizes in
        # the snapshot in the paper: 55x55 => 27x27 => 13x13 => 13x13 => 13x13.
        # Also Andrew NG. says that "Same" padding is used in these layers. Watch:
        # https://www.coursera.org/lecture/convolutional-neural-networks/classic-networks-MmYe2
        # 8:04, 8:20+
        
        conv_stride = 4  # common for all convolution layers

        # layer 1
        layer_kernel_size = 11
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels=in_channels, out_channels=96, kernel_size=layer_kernel_size, stride=conv_stride,
                                             bias=False),
                                   nn.ReLU(),
                                   nn.LocalResponseNorm(size=5, alpha=0.0001, beta=0.75, k=2.0),
                                   nn.MaxPool2d(kernel_size=3, stride=2))
        weights_init(self.conv1[0], bias=False)
        self.update_size(self.conv1[0], dims=self.dimensions)
        self.update_size(self.conv1[3])  # pool
        
        # layer 2
        layer_kernel_size = 5
        self.conv2 = nn.Sequential(nn.Conv2d(in_channels=self.conv1[0].out_channels, out_channels=256, kernel_size=layer_kernel_size, stride=conv_stride,
                                             padding=same_padding(self.current_size, kernel_size=layer_kernel_size, stride=conv_stride)),
                                   nn.ReLU(),
                                   nn.LocalResponseNorm(size=5, alpha=0.0001, beta=0.75, k=2.0),
                                   nn.MaxPool2d(kernel_size=3, stride=2))
        weights_init(self.conv2[0])
        self.update_size(self.conv2[0])
        self.update_size(self.conv2[3])  # pool
        
        # layer 3
        layer_kernel_size = 3
        self.conv3 = nn.Sequential(nn.Conv2d(in_channels=self.conv2[0].out_channels, out_channels=384, kernel_size=layer_kernel_size, stride=conv_stride,
                                             padding=same_padding(self.current_size, kernel_size=layer_kernel_size, stride=conv_stride),
                                             bias=False),
                                   nn.ReLU())
        weights_init(self.conv3[0], bias=False)
        self.update_size(self.conv3[0])
        
        # layer 4
        layer_kernel_size = 3
        self.conv4 = nn.Sequential(nn.Conv2d(in_channels=self.conv3[0].out_channels, out_channels=384, kernel_size=layer_kernel_size, stride=conv_stride,
                                             padding=same_padding(self.current_size, kernel_size=layer_kernel_size, stride=conv_stride)),
                                   nn.ReLU())
        weights_init(self.conv4[0])
        self.update_size(self.conv4[0])
    
        # layer 5
        layer_kernel_size = 3
        self.conv5 = nn.Sequential(nn.Conv2d(in_channels=self.conv4[0].out_channels, out_channels=256, kernel_size=layer_kernel_size, stride=conv_stride,
                                             padding=same_padding(self.current_size, kernel_size=layer_kernel_size, stride=conv_stride)),
                                   nn.ReLU(),
                                   nn.MaxPool2d(kernel_size=3, stride=2))
        weights_init(self.conv5[0])
        self.update_size(self.conv5[0])
        self.update_size(self.conv5[2])  # pool

        # Note: Not clear whether Dropout goes before or after in the following 2 layers. To my understanding it's after.
        # See: https://stats.stackexchange.com/questions/240305/where-should-i-place-dropout-layers-in-a-neural-network

        # layer 6
        self.fc1 = nn.Sequential(nn.Linear(self.conv5[0].out_channels*self.current_size*self.current_size, 4096),
                                 nn.Dropout(0.5))
        weights_init(self.fc1[0])
        
        # layer 7
        self.fc2 = nn.Sequential(nn.Linear(self.fc1[0].out_features, 4096),
                                 nn.Dropout(0.5))
        weights_init(self.fc2[0])
        
        # output layer (softmax)
        self.fc3 = nn.Sequential(nn.Linear(self.fc2[0].out_features, self.num_classes),
                                 nn.Softmax())

    def forward(self, x):
        x = self.conv5(self.conv4(self.conv3(self.conv2(self.conv1(x)))))
        x = x.reshape(x.shape[0], -1)  # Try torch.flatten(x, 1)
        x = self.fc3(self.fc2(self.fc1(x)))
        
        return x
    
    def update_size(self, layer, dims=None):
        # assuming symmetricity
        self.current_size = calc_out_size(in_size=dims if dims else self.current_size, padding=layer.padding, kernel=layer.kernel_size, stride=layer.stride)
        print(f'self.current_size = {self.current_size}')
